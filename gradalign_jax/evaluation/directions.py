"""Gradients beside the one of the paper: their alignments with every Δx, and further measures, image by image.

All of it is one compiled program a block. Gradients point from the true class y to the closest other class c̃ (Eq. 5),
which the alignments of the paper have found before.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax import data, parallel
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.evaluation.options import Directions
from gradalign_jax.evaluation.programs import Evaluation, Model
from gradalign_jax.evaluation.schedule import Point
from gradalign_jax.measures import etmann, noise, removal, tangent
from gradalign_jax.terminal import progress_bar
from gradalign_jax.types import Array, Batch, LogitsFn, Variables, predicted

REMOVED = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the pixels, as in ROAR
RADII = (0.05, 0.1, 0.2, 0.4)  # of the noise, in root mean squares over the image's values: L2 norms over √n
_BLOCKS = 4  # per point


def of_images(
    logits_fn: LogitsFn, directions: Directions, batch: Batch, keys: Array, target: Array, fill: Array | np.ndarray
) -> dict[str, Array]:
    """Return every measure of a block of images, `[B]` or `[B, ...]` by name.

    The names are those of `summarize`, joined by slashes: `alignment/GRADIENT/ΔX`, for instance.

    Args:
      logits_fn: the classifier.
      directions: what to measure.
      batch: the images.
      keys: one per image.
      target: c̃, int `[B]`.
      fill: what removed pixels become, as in `measures.removal`.
    """
    image, label = batch.image, batch.label
    found: dict[str, Array] = {}
    chosen, space = directions.measures, directions.tangent_space
    vectors = {name: f(image, label, target, batch.index) for name, f in directions.delta_x.items()}

    gradients = {name: f(logits_fn, keys, image, label, target) for name, f in directions.functions.items()}
    for name, g in gradients.items():
        found |= {f"alignment/{name}/{other}": cosine_similarity(vector, g) for other, vector in vectors.items()}
        if "etmann" in chosen:
            found[f"etmann/{name}"] = etmann.alignment(image, g)
    if "etmann" in chosen:
        found["etmann/predicted"] = etmann.alignment(image, etmann.predicted_gradient(logits_fn, image))
    if "removal" in chosen:
        order = jax.vmap(lambda k: jax.random.uniform(k, image.shape[1:]))(keys)
        found |= _right_without(logits_fn, image, label, fill, gradients | {"random": order})
    if space is not None and {"tangent", "noise"} & set(chosen):
        basis, size = space(label, batch.index), math.prod(image.shape[1:])
        if "tangent" in chosen:
            found |= {f"tangent_share/{name}": tangent.share(basis, g) for name, g in gradients.items()}
            found["tangent_share/random"] = jnp.sum(basis**2, axis=(1, 2)) / size
        if "noise" in chosen:
            change, radii = partial(noise.change, logits_fn, keys, image, basis), math.sqrt(size) * jnp.asarray(RADII)
            found["noise/on"], found["noise/off"] = (part.T for part in jax.lax.map(change, radii))
    return found


def _right_without(
    logits_fn: LogitsFn, image: Array, label: Array, fill: Array | np.ndarray, rankings: Mapping[str, Array]
) -> dict[str, Array]:
    """Return whether images are classified correctly without each share of the pixels, `[B, S]` for each ranking.

    One loop makes all of it: the classifier is compiled once.
    """

    def right(ranking: Array, share: Array) -> Array:
        return predicted(logits_fn(removal.remove(image, ranking, share, fill))) == label

    shares, stacked = jnp.asarray(REMOVED, image.dtype), jnp.stack(list(rankings.values()))
    found = jax.lax.map(lambda ranking: jax.lax.map(partial(right, ranking), shares), stacked)  # [rankings, S, B]
    return {f"removal/{name}": rows.T for name, rows in zip(rankings, found, strict=True)}


def measure(
    evaluation: Evaluation,
    variables: Variables,
    split: data.Split,
    target: np.ndarray,
    directions: Directions,
    remember: Callable[[Point], dict[str, list]],
) -> dict[str, Any]:
    """Measure a split; return `summarize` of it.

    Args:
      evaluation: the programs of the split.
      variables: the weights, with a leading device axis.
      split: images on the host.
      target: c̃ of each image, int `[N]`.
      directions: what to measure.
      remember: returns a point's recorded value, or computes and records it.
    """
    fill = mean_pixel(split.image)

    def measured(variables, batch, keys, rows, functions):
        model = Model(evaluation.classifier, variables)
        return of_images(model, directions.with_functions(**functions), batch, keys, rows["target"], fill)

    program = evaluation.blocks.program(measured, 0)
    functions = {"delta_x": dict(directions.delta_x), "tangent_space": directions.tangent_space or ()}
    functions = parallel.replicate(functions, evaluation.devices)

    def compute(part: range) -> dict[str, list]:
        rows = evaluation.blocks.rows(part) | {"target": np.asarray(target, np.int32)[part.start : part.stop]}
        return {name: value.tolist() for name, value in program(variables, rows, functions).items()}

    step = _BLOCKS * evaluation.block
    parts = [range(first, min(first + step, evaluation.size)) for first in range(0, evaluation.size, step)]
    points = [Point("directions", None, part, partial(compute, part)) for part in parts]
    found = [remember(point) for point in progress_bar(points, unit="point", desc="directions")]
    return summarize({name: np.concatenate([np.asarray(part[name]) for part in found]) for name in found[0]})


def mean_pixel(image: np.ndarray) -> np.ndarray:
    """Return the mean over images and pixels, in model units: one value per channel `[C]`, or `[]` for `[N, n]`."""
    axes = None if image.ndim == 2 else tuple(range(image.ndim - 1))
    mean = np.mean(image, axis=axes, dtype=np.float64)
    return np.asarray((2 * mean - 255) / 255 if image.dtype == np.uint8 else mean, np.float32)


def summarize(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return means over images `[N, ...]`; a measure that was not made is absent, a mean that is not finite is None.

    Returns:
      `alignment`: ᾱ by gradient and Δx. `etmann`: by gradient; `predicted` is Etmann's own measure, of the gradient of
      the predicted class's logit. `tangent_share`: by gradient; `random` is what a random vector would have.
      `removal`: accuracy without each share of the pixels in `removed`, by gradient and in random order. `noise`: mean
      change of the prediction `on` and `off` the manifold for each of `radii`, L2 norms over √n.
    """
    result: dict[str, Any] = {}
    for name, rows in values.items():
        *path, last = name.split("/")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        mean = np.mean(rows, axis=0, dtype=np.float64)
        place[last] = jax.tree.map(lambda value: value if math.isfinite(value) else None, mean.tolist())
    if "removal" in result:
        result["removed"] = list(REMOVED)
    if "noise" in result:
        result["radii"] = list(RADII)
    return result
