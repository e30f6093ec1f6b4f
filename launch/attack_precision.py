"""What bfloat16 costs the attack of PGD training: `python launch/attack_precision.py DIR [--epsilon=0.3 ...]`.

Attacks test images of a finished classifier run twice from the same starts, with float32 and with bfloat16 kernels,
and judges both by the float32 classifier: the mean gain of logit_other - logit_label over clean images, as a share.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs uninstalled

from gradalign_jax import training, weights
from gradalign_jax.attacks import pgd
from gradalign_jax.data import Split, pipeline
from gradalign_jax.tasks import batches, testing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--epsilon", type=float, action="append", help="repeatable; default: the run's, and half of it")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    variables, described = weights.read(Path(arguments.directory) / "classifier.safetensors")
    config = ConfigDict(described["config"])
    dataset = batches.load(config)
    model = testing.create_classifier(config, dataset)
    split = batches.split(config, dataset, "test", jax.random.key(0))
    batch = pipeline.gather(
        Split(*(jnp.asarray(rows[: arguments.images]) for rows in split)), jnp.arange(arguments.images)
    )
    attack = pgd.make("linf", steps=config.attack.steps, loss=config.attack.loss)

    def gain(logits):
        own = jax.nn.one_hot(batch.label, logits.shape[1], dtype=bool)
        return jnp.mean(jnp.max(jnp.where(own, -jnp.inf, logits), 1) - jnp.sum(jnp.where(own, logits, 0), 1))

    @partial(jax.jit, static_argnums=1)
    def attacked(epsilon, dtype):
        seen = {**variables, "params": training.cast_kernels(variables["params"], dtype)}
        key, step_size = jax.random.key(0), config.attack.step_size
        logits_fn = lambda image: model.apply(seen, image)[0].astype(jnp.float32)  # noqa: E731
        image = attack(logits_fn, key, batch.image, batch.label, epsilon, step_size)
        logits = model.apply(variables, image)[0]
        return gain(logits), jnp.mean(logits.argmax(-1) != batch.label)

    clean = gain(model.apply(variables, batch.image)[0])
    print("| ε | share of the float32 gain | error, float32 | error, bfloat16 |\n|---|---|---|---|")
    for epsilon in arguments.epsilon or (config.attack.epsilon / 2, config.attack.epsilon):
        (full, full_error), (half, half_error) = (
            attacked(jnp.float32(epsilon), t) for t in (jnp.float32, jnp.bfloat16)
        )
        share = float((half - clean) / (full - clean))
        print(f"| {epsilon:g} | {share:.4f} | {float(full_error):.3f} | {float(half_error):.3f} |", flush=True)


if __name__ == "__main__":
    main()
