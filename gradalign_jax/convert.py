"""Import weights from PyTorch, and export weights to it.

    python -m gradalign_jax.convert import FILE DIR --model=wide_resnet [--options depth=34 ...]
    python -m gradalign_jax.convert export DIR FILE

`import` writes a safetensors file or a PyTorch checkpoint (.pt, .pth, .tar, .ckpt; needs PyTorch) as the classifier of
a directory that `--config.classifier=DIR` measures, or `--config.model.pretrained=DIR/classifier.safetensors` starts
from. Options are those of `create` of the model's file in gradalign_jax/models. `export` writes the classifier of a
directory as a safetensors file with the names of torchvision and timm (`resnet`) or of RobustBench.
"""

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from safetensors.numpy import save

from gradalign_jax import data, models
from gradalign_jax.errors import RunError, first_line
from gradalign_jax.experiment.artifacts import CLASSIFIER, IMPORTED
from gradalign_jax.models import pretrained, stem
from gradalign_jax.storage import weights
from gradalign_jax.storage.atomic import write_atomically


def import_weights(
    source: Path, directory: Path, dataset: str, model: str, options: Mapping[str, Any], entry: str = ""
) -> str:
    """Write weights of another origin as the classifier of a directory; return what they are, in words.

    Args:
      source: a file that `pretrained.read` reads.
      directory: created if it is missing.
      dataset: name of the data set that the weights classify.
      model, options: the network, as `models.create` takes them.
      entry: the key of a checkpoint that holds the weights; "": a usual one.

    Raises:
      ValueError: if an argument is not valid, the weights are not those of this network, or the directory has some.
      ImportError: if the file is a checkpoint and PyTorch is not installed.
    """
    target = directory / CLASSIFIER
    if dataset not in data.NAMES:
        raise ValueError(f"--dataset={dataset} is not a data set: use one of {', '.join(data.NAMES)}")
    if target.exists():
        raise ValueError(f"{target} exists: choose another directory")
    tensors = pretrained.read(source, entry)
    classes = pretrained.classes(source, tensors)
    classifier = models.create(model, num_classes=classes, **options)
    pretrained.check(source, tensors, jax.eval_shape(classifier.init, jax.random.key(0)))  # before the slow compilation
    variables = pretrained.assign(source, tensors, classifier.init(jax.random.key(0)))
    config = {
        "task": "classifier",
        "method": IMPORTED,
        "seed": 0,
        "data": {"name": dataset},
        "model": {"name": model, **options, "pretrained": str(source)},
    }
    directory.mkdir(parents=True, exist_ok=True)
    weights.write(target, variables, config=config, classes=classes)
    lines = [f"{target}: {model}, {sum(leaf.size for leaf in jax.tree.leaves(variables['params'])):,} parameters"]
    if "mu" in variables["batch_stats"]:
        mean, std = (", ".join(f"{value:.4g}" for value in variables["batch_stats"][name]) for name in ("mu", "sigma"))
        source_of = "as in the file" if "mu" in tensors else "not in the file, set by the options mean and std"
        lines.append(f"images of [0, 1] are normalized by mean ({mean}), deviation ({std}): {source_of}")
    return "\n".join(lines)


def export_weights(directory: Path, target: Path) -> str:
    """Write a classifier's weights as a safetensors file with PyTorch's names; return how PyTorch uses them, in words.

    Raises:
      RunError: if the directory has no undamaged classifier.
      ValueError: if the model has no names in PyTorch.
    """
    variables, described = weights.read(directory / CLASSIFIER)
    model = described["config"]["model"]
    tensors = pretrained.to_torch(variables)
    write_atomically(target, save(tensors, metadata={"format": "pt"}))
    return f"{target}: {model['name']}, {len(tensors)} tensors\n{_usage(model)}"


def _usage(model: Mapping[str, Any]) -> str:
    """Return which network of PyTorch takes the weights, and the images that it must be given."""
    if model["name"] != "resnet":
        return (
            "input: images in [0, 1]; mu and sigma, if the file has them, are RobustBench's buffers of a network that "
            "normalizes its input, or the arguments mean and std of DMWideResNet"
        )
    scale, shift = stem.INPUT_MAPPINGS[model.get("input_mapping", "unit")]
    changed = "" if model.get("stem", "imagenet") == "imagenet" else "; conv1 is 3x3 of stride 1, without max pooling"
    return (
        f"input: ({scale:g} x + {shift:g} - {stem.IMAGENET_MEAN}) / {stem.IMAGENET_STD} of images x in [-1, 1], "
        f"three channels (torchvision's and timm's resnet18{changed})"
    )


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `OPTION=VALUE` pairs: ["depth=34"] becomes {"depth": 34}; a value that is not a literal stays a string."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is not an option: write OPTION=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m gradalign_jax.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("import", help="weights of PyTorch become a classifier here")
    take.add_argument("source", type=Path, metavar="FILE")
    take.add_argument("directory", type=Path, metavar="DIR")
    take.add_argument("--model", required=True, help=pretrained.MODELS)
    take.add_argument(
        "--options", nargs="+", default=[], metavar="OPTION=VALUE", help="of the model: depth=34 width=20"
    )
    take.add_argument("--dataset", default="cifar10", help="that the weights classify; default cifar10")
    take.add_argument("--entry", default="", help="key of a checkpoint that holds the weights; default: a usual one")
    give = commands.add_parser("export", help="a classifier from here becomes weights of PyTorch")
    give.add_argument("directory", type=Path, metavar="DIR")
    give.add_argument("target", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Convert as the command line says; exit with status 2 and one line if that is not possible."""
    arguments = parse_arguments(argv)
    try:
        if arguments.command == "export":
            print(export_weights(arguments.directory, arguments.target))
            return
        options = _options(arguments.options)
        print(
            import_weights(
                arguments.source, arguments.directory, arguments.dataset, arguments.model, options, arguments.entry
            )
        )
    except (ImportError, OSError, RunError, TypeError, ValueError) as error:
        print(f"gradalign_jax: {first_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
