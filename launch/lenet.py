"""advertorch's public MNIST classifiers under a suite of attacks: `python launch/lenet.py advertorch-0.2.3.tar.gz`.

Two LeNets of 2018, one trained on clean images ("cln"), one with PGD at ε .3 of [0, 1] ("adv"), in the source
distribution of advertorch (`pip download --no-deps --no-binary :all: --no-build-isolation advertorch==0.2.3`, or from
its page on pypi.org). The weights are read as tensors, without running code from the file. Needs PyTorch.
"""

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

import gradalign_jax
from gradalign_jax import data
from gradalign_jax.ops.convolution import conv
from gradalign_jax.types import Array

MEMBER = "advertorch-0.2.3/advertorch_examples/trained_models/mnist_lenet5_{}trained.pt"
Weights = Mapping[str, np.ndarray]  # by PyTorch's names


def read(archive: Path, training: str = "adv") -> Weights:
    """Return the weights of a LeNet, "adv" or "cln", from advertorch's source distribution."""
    import torch

    with tarfile.open(archive) as files:
        file = files.extractfile(MEMBER.format(training))
        assert file is not None, f"{archive} has no {MEMBER.format(training)}"
        state = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def logits_fn(weights: Weights) -> Callable[[Array], Array]:
    """Build the classifier: images `[B, 28, 28, 1]` in [0, 1] -> logits `[B, 10]`."""
    kernels = [weights[f"conv{i}.weight"].transpose(2, 3, 1, 0) for i in (1, 2)]
    # PyTorch flattens channels first, here they are last.
    dense = weights["linear1.weight"].reshape(-1, 64, 7, 7).transpose(2, 3, 1, 0).reshape(7 * 7 * 64, -1)

    def layer(x, number):
        y = conv(x, jnp.asarray(kernels[number - 1], x.dtype), 1, 1)
        y = jax.nn.relu(y + weights[f"conv{number}.bias"].astype(x.dtype)[None, None, None])
        return first_maximum(first_maximum(y, 2), 1)

    def first_maximum(y, axis):
        """Return the maximum of pairs; of equal ones the first gets the gradient, as in PyTorch."""
        a, b = (lax.slice_in_dim(y, start, None, 2, axis) for start in (0, 1))
        return jnp.where(b > a, b, a)

    def logits(image):
        x = layer(layer(image, 1), 2).reshape(len(image), -1)
        x = jax.nn.relu(x @ dense.astype(x.dtype) + weights["linear1.bias"].astype(x.dtype)[None])
        return x @ weights["linear2.weight"].T.astype(x.dtype) + weights["linear2.bias"].astype(x.dtype)[None]

    return logits


def torch_logits_fn(weights: Weights) -> Callable:
    """Build the same classifier in PyTorch, of images `[B, 1, 28, 28]`."""
    import torch
    import torch.nn.functional as F

    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}

    def logits(image):
        w = {name: tensor.to(image.dtype) for name, tensor in tensors.items()}
        for layer in ("conv1", "conv2"):
            image = F.conv2d(image, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1)
            image = F.max_pool2d(F.relu(image), 2)
        hidden = F.relu(F.linear(image.flatten(1), w["linear1.weight"], w["linear1.bias"]))
        return F.linear(hidden, w["linear2.weight"], w["linear2.bias"])

    return logits


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first MNIST test images, float32 `[count, 28, 28, 1]` in [0, 1], and their labels."""
    test = data.load("mnist").splits["test"]
    return test.image[:count].astype(np.float32) / 255, test.label[:count]


def main() -> None:
    """Print the suite's numbers, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="TAR", help="advertorch-0.2.3.tar.gz")
    parser.add_argument("--training", choices=("adv", "cln"), default="adv", help="which of the two (adv)")
    parser.add_argument("--suite", default="autoattack", help="paper, autoattack (default) or malt")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.35, 0.4], help="ascending")
    parser.add_argument("--images", type=int, default=200, help="number of test images (200)")
    parser.add_argument("--queries", type=int, default=5000, help="of Square Attack (5000)")
    parser.add_argument("--workdir", help="directory from which a killed command resumes")
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the result to this file")
    arguments = parser.parse_args()
    image, label = images(arguments.images)
    queries, norms = arguments.queries, (arguments.norm,)
    suite = arguments.suite
    if suite != "paper":
        suite = gradalign_jax.Suite(suite, arguments.norm, queries=queries)
    # The paper's 40 steps, of the size that moves a pixel twice by the largest ε.
    size = 2 * arguments.epsilon[-1] / 40
    result = gradalign_jax.evaluate(
        logits_fn(read(arguments.archive, arguments.training)),
        image,
        label,
        epsilons=arguments.epsilon,
        pgd=gradalign_jax.PGD(norms, step_size=size, l2_epsilons=arguments.epsilon, l2_step_size=size),
        square=gradalign_jax.Square(queries),
        suite=suite,
        bounds=(0.0, 1.0),
        workdir=arguments.workdir,
    )
    for name, curve in result["curves"].items():
        errors = " ".join(f"{100 * error:.1f}" for error in curve["errors"])
        spent = ", ".join(f"{key} {curve[key]:.0f}" for key in ("gradients", "queries", "seconds") if key in curve)
        print(f"{name}: error % {errors}; ε50% {curve['epsilon_half']:.4f}; {spent}")
    print(*result["warnings"], sep="\n")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
