"""The configured gradients and further Δx of a measurement, and their pictures."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gradalign_jax import data
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.options import Directions
from gradalign_jax.evaluation.programs import Model
from gradalign_jax.experiment import artifacts, estimates
from gradalign_jax.storage import pictures
from gradalign_jax.types import Array, Batch, Classifier, DeltaX, Estimate, Variables


def load(
    config: ConfigDict, dataset: data.Dataset, split: data.Split, measuring: Estimate | None, folder: Path | None = None
) -> Directions | None:
    """Load what `config.evaluate` names, None where it names no gradient.

    Args:
      config: the task's.
      dataset: the data.
      split: the test images in use.
      measuring: the Δx of ᾱ_Δx, which is compared as well, by the name of its source.
      folder: as in `estimates.load_delta_x`.

    Raises:
      RunError: as `estimates.load_delta_x`, or if a Δx or the tangent spaces cannot be used.
    """
    section = config.evaluate
    if not section.gradients:
        return None
    delta_x: dict[str, DeltaX] = {measuring.described["source"]: measuring.delta_x} if measuring else {}
    for name in section.estimators:
        if name not in delta_x:
            delta_x[name] = _load_estimator(section, name, dataset, folder).delta_x
    space = None
    if {"tangent", "noise"} & set(section.measures):
        space = artifacts.load_tangent_space(section.store, dataset, split)
    return Directions(section.gradients, delta_x, section.measures, space)


def _load_estimator(section: ConfigDict, name: str, dataset: data.Dataset, folder: Path | None) -> Estimate:
    """Load an estimator that needs no finished run, with its default options."""
    without = {"generator": "", "store": "", "teacher": "", "neighbors": 0}
    own = ConfigDict(section.to_dict() | without | {"delta_x": name})
    estimate = estimates.load_delta_x(own, dataset, "test", section.images, folder=folder)
    if estimate is None:
        raise RunError(f"{dataset.name} has no Δx by {name!r}: take it off config.evaluate.estimators")
    return estimate


def draw(
    folder: Path,
    classifier: Classifier,
    variables: Variables,
    directions: Directions,
    batch: Batch,
    target: Array,
    keys: Array,
) -> dict[str, Any]:
    """Draw every gradient and Δx of a few images as directions.png; return the arrays for pictures.npz.

    Args:
      folder: directory of the picture.
      classifier, variables: the classifier.
      directions: its gradients and Δx.
      batch: the images.
      target: c̃ of each image.
      keys: one per image.
    """

    @jax.jit
    def compute(variables: Variables, delta_x: dict[str, DeltaX], batch: Batch, target: Array, keys: Array):
        model, image, label = Model(classifier, variables), batch.image, batch.label
        found = {f"gradient_{name}": f(model, keys, image, label, target) for name, f in directions.functions.items()}
        return found | {f"delta_x_{name}": f(image, label, target, batch.index) for name, f in delta_x.items()}

    arrays = compute(variables, dict(directions.delta_x), batch, target, keys)
    names = {f"gradient_{name}": f"∇ {name}" for name in directions.functions}
    names |= {f"delta_x_{name}": f"Δx {name}" for name in directions.delta_x}
    vectors = {names[name]: arrays[name] for name in names}
    pictures.draw_rows(folder / "directions.png", {"x": batch.image}, vectors)
    return arrays
