"""`gradalign_jax.evaluate`: every measurement of the paper on anyone's own classifier, in one call."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gradalign_jax import data, measurements, parallel
from gradalign_jax.attacks import cw, pgd, square
from gradalign_jax.evaluation import Evaluation
from gradalign_jax.types import IMAGE_RANGE, Classifier, DeltaX, Estimate, LogitsFn
from gradalign_jax.workdir import Workdir


def _classes(logits_fn: LogitsFn, image: np.ndarray) -> int:
    """The number of classes, found by tracing `logits_fn` without computing anything."""
    two = jax.ShapeDtypeStruct((2, *image.shape[1:]), jnp.float32)
    try:
        logits = jax.eval_shape(logits_fn, two)
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"logits_fn cannot be traced by JAX on float32 images {two.shape} ({cause}): it must be a function of JAX "
            "arrays alone"
        ) from error
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        raise ValueError(
            f"logits_fn returns {shape or type(logits).__name__} for images {two.shape}, not logits [B, K] with K >= 2:"
            " give a binary score s as types.binary_logits(s)"
        )
    return shape[1]


def _check_delta_x(delta_x: DeltaX, image: np.ndarray) -> None:
    """Traces `delta_x` without computing anything, and compares shapes."""
    two, row = jax.ShapeDtypeStruct((2, *image.shape[1:]), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    try:
        shape = getattr(jax.eval_shape(delta_x, two, row, row, row), "shape", None)
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"delta_x cannot be traced by JAX on images {two.shape} and int32 rows ({cause})") from error
    if shape != two.shape:
        raise ValueError(f"delta_x returns {shape} for images {two.shape}: it must return vectors of the images' shape")


def _grid(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """The ε of an error curve as plain numbers."""
    grid = tuple(map(float, np.ravel(values)))
    if not (grid and grid[0] > 0 and np.all(np.diff(grid) > 0) and math.isfinite(grid[-1])):
        raise ValueError(f"{name} must be ascending numbers > 0, got {grid}")
    return grid


def _compute(measure: str, epsilon: float | None, first: int, compute: Callable[[], Any]) -> Any:
    return compute()


def _identity(
    logits_fn: LogitsFn, delta_x: DeltaX | None, split: data.Split, classes: int, settings: tuple
) -> dict[str, str]:
    """What tells one evaluation from another: two functions by what they make of the first images, the rest whole."""
    image, label, index = (jnp.asarray(rows[:2]) for rows in split)
    seen = {
        "images": (split.image, split.label, split.index),
        "logits_fn": (logits_fn(image),),
        "delta_x": () if delta_x is None else (delta_x(image, label, (label + 1) % classes, index),),
    }
    hashes = {
        name: hashlib.blake2b(b"".join(np.asarray(a).tobytes() for a in arrays), digest_size=16).hexdigest()
        for name, arrays in seen.items()
    }
    return hashes | {"settings": repr(settings)}


def evaluate(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilons: Sequence[float],
    num_classes: int | None = None,
    attacks: Sequence[str] = measurements.ATTACKS,
    l2_epsilons: Sequence[float] | None = None,
    step_size: float = 0.02,
    l2_step_size: float | None = None,
    steps: int = 40,
    loss: str = "cross_entropy",
    queries: int = 5000,
    cw_images: int = 0,
    delta_x: DeltaX | None = None,
    index: np.ndarray | None = None,
    bounds: tuple[float, float] = IMAGE_RANGE,
    block: int = 100,
    seed: int = 0,
    workdir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Accuracy, error curves, ε50% under each attack, alignments, and warnings, of a classifier in evaluation mode.

    Flax: `logits_fn = lambda x: model.apply(variables, x, train=False)`.
    Equinox: `logits_fn = jax.vmap(eqx.nn.inference_mode(model))` (with the axes the model expects).
    Plain JAX: any function of images.

    Args:
      logits_fn: float32 images `[B, ...]` in `bounds` -> logits `[B, K]`; normalisation of the input belongs to it.
      images: float32 `[N, H, W, C]` or `[N, n]` in `bounds` (uint8: first `data.to_float`).
      labels: integers `[N]`, 0 .. K - 1.
      epsilons: ascending, > 0, in units of the images, of PGD L∞ and of Square Attack.
      num_classes: K; default: the logits' width.
      attacks: of "pgd_linf", "pgd_l2", "square_linf".
      l2_epsilons: of PGD L2; default: `epsilons` times √n, n the numbers in an image.
      step_size, l2_step_size: of PGD; the latter's default is the former times √n. The paper's .02 travels .8 in 40
        steps, too little where a start may lie 2 ε away.
      steps, loss: of PGD; loss "cross_entropy", or "margin", which stays sighted where the classifier is very sure.
      queries: of Square Attack.
      cw_images: how many of the first images Carlini-Wagner's L2 attack measures too.
      delta_x: (image, label, target, index) -> `[B, ...]`, a vector to class `target`; None leaves it out.
      index: handed to `delta_x`; default: an image's place in `images`.
      bounds: smallest and largest value of an image, attacked or not.
      block: images per device and program; lower it where memory runs out.
      seed: of the attacks' randomness.
      workdir: directory that keeps finished measurements: a call that was killed, made again, goes on where it was.

    Returns:
      JSON values: `accuracy`, `epsilon_half` and `curves` by attack, `alpha_delta_x`, `alpha_x` and its variants,
      `linearity` (Figure 7's pairs), `warnings` (plain words), `classes`, `images`; None where not measured.

    Raises:
      ValueError: one line on what is wrong with the images (NaN, another range), labels, ε, an attack's name,
        `logits_fn`, or a `workdir` that holds measurements of something else.

    Example:
      >>> import jax.numpy as jnp, numpy as np, gradalign_jax
      >>> images = np.linspace(-0.9, 0.9, 8, dtype="float32").reshape(8, 1, 1, 1)
      >>> labels = (images > 0).ravel().astype("int32")
      >>> logits_fn = lambda x: jnp.concatenate([-x[:, 0, 0], x[:, 0, 0]], -1)
      >>> options = {"epsilons": (0.25, 0.5, 1.0), "step_size": 0.1, "queries": 20}
      >>> result = gradalign_jax.evaluate(logits_fn, images, labels, **options)
      >>> result["accuracy"], round(result["epsilon_half"]["pgd_linf"], 2), result["warnings"]
      (1.0, 0.5, [])
    """
    images = np.asarray(images)
    classes = _classes(logits_fn, images)
    if num_classes not in (None, classes):
        raise ValueError(f"num_classes={num_classes}, but logits_fn returns {classes} logits: correct one of them")
    if np.shape(bounds) != (2,) or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds={bounds} must be the smallest and the largest value of an image")
    data.check(images, labels, classes, bounds)
    if delta_x is not None:
        _check_delta_x(delta_x, images)
    epsilons = _grid("epsilons", epsilons)
    l2_epsilons = None if l2_epsilons is None else _grid("l2_epsilons", l2_epsilons)
    if loss not in pgd.LOSSES:
        raise ValueError(f"unknown attack loss {loss!r}: use one of {', '.join(sorted(pgd.LOSSES))}")
    for name in attacks:
        if name not in measurements.ATTACKS:
            raise ValueError(f"unknown attack {name!r}: use some of {', '.join(measurements.ATTACKS)}")
    for name, value in (("step_size", step_size), ("l2_step_size", 1 if l2_step_size is None else l2_step_size)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be a number > 0")
    counts = {"block": (block, 1), "steps": (steps, 1), "queries": (queries, 1), "cw_images": (cw_images, 0)}
    for name, (value, least) in counts.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value} must be an integer >= {least}")
    if index is not None and len(index) != len(labels):
        raise ValueError(f"index has {len(index)} entries for {len(labels)} images: give one each")
    root = math.sqrt(math.prod(np.shape(images)[1:]))
    grids = {
        "pgd_linf": (step_size, epsilons),
        "pgd_l2": (
            l2_step_size or step_size * root,
            tuple(e * root for e in epsilons) if l2_epsilons is None else l2_epsilons,
        ),
    }
    white_box = {name: grids[name] for name in attacks if name in grids}
    black_box = "square_linf" in attacks
    plan = measurements.Plan(
        white_box, epsilons, queries if black_box else 0, nearest_images=min(cw_images, len(labels))
    )
    index = np.arange(len(labels)) if index is None else index
    split = data.Split(np.asarray(images, np.float32), np.asarray(labels, np.int32), np.asarray(index, np.int32))
    on = parallel.devices(0, 0)
    evaluation = Evaluation(
        Classifier(init=lambda key: {}, apply=lambda variables, image, train=False: (logits_fn(image), {})),
        split,
        on=on,
        block=block,
        key=jax.random.key(seed),
        attacks={name: pgd.make(name.removeprefix("pgd_"), steps, True, loss, bounds) for name in white_box},
        delta_x=delta_x and Estimate((), lambda _, *batch: delta_x(*batch), {}),
        loss=loss,
        black_box=square.parts(queries, bounds=bounds) if black_box else None,
        nearest=cw.make(bounds=bounds),
    )
    nothing = parallel.replicate({"": np.zeros(1)}, on)  # pmap mistakes the axes of what follows an empty tree
    points = measurements.schedule(evaluation, nothing, plan)
    with contextlib.ExitStack() as stack:
        value = _compute
        if workdir is not None:
            settings = (plan, steps, loss, bounds, block, seed)
            kept = Workdir(workdir, _identity(logits_fn, delta_x, split, classes, settings))
            stack.callback(kept.close)
            value = kept.remembered()
        # As in runs from a config: what is reported is of float32 products, which a GPU or TPU shortens by default.
        stack.enter_context(jax.default_matmul_precision("highest"))
        bar = stack.enter_context(tqdm(points, unit="point", dynamic_ncols=True, disable=None))
        values = measurements.gather(
            (point, value(point.measure, point.epsilon, point.part.start, point.compute)) for point in bar
        )
    return measurements.summarise(values, split, plan) | {"classes": classes, "images": len(labels)}
