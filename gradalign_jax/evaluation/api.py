"""`gradalign_jax.evaluate`: every measurement of the paper on anyone's own classifier, in one call."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gradalign_jax import data, parallel
from gradalign_jax.attacks import cw, pgd, square
from gradalign_jax.evaluation import measurements
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.types import IMAGE_RANGE, Array, Classifier, DeltaX, Estimate, LogitsFn

_SAME = 1e-3  # logits that differ by less, relatively, are of one function


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
    try:
        grid = tuple(map(float, np.ravel(values)))
    except (TypeError, ValueError):
        grid = ()
    if not (grid and grid[0] > 0 and np.all(np.diff(grid) > 0) and math.isfinite(grid[-1])):
        raise ValueError(f"{name} must be ascending numbers > 0, got {values}")
    return grid


def _range(bounds: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value of an image as plain numbers."""
    if np.shape(bounds) != (2,) or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds={bounds} must be the smallest and the largest value of an image")
    return float(bounds[0]), float(bounds[1])


def _check_options(attacks: Sequence[str], loss: str, sizes: dict[str, float], counts: dict[str, tuple]) -> None:
    """Raises ValueError on an unknown name, a step size that is none, or a count below its least value."""
    if loss not in pgd.LOSSES:
        raise ValueError(f"unknown attack loss {loss!r}: use one of {', '.join(sorted(pgd.LOSSES))}")
    if isinstance(attacks, str) or not isinstance(attacks, Sequence):
        raise ValueError(f"attacks={attacks!r} must be a list of names: some of {', '.join(measurements.ATTACKS)}")
    for name in attacks:
        if name not in measurements.ATTACKS:
            raise ValueError(f"unknown attack {name!r}: use some of {', '.join(measurements.ATTACKS)}")
    for name, size in sizes.items():
        if not isinstance(size, Real) or not (size > 0 and math.isfinite(size)):
            raise ValueError(f"{name}={size} must be a number > 0")
    for name, (count, least) in counts.items():
        if not isinstance(count, Integral) or count < least:
            raise ValueError(f"{name}={count} must be an integer >= {least}")


def _identity(split: data.Split, settings: tuple) -> dict[str, str]:
    """What tells one evaluation from another, besides the classifier and Δx, which are functions."""
    images = b"".join(np.ascontiguousarray(rows).tobytes() for rows in split)
    return {"images": hashlib.blake2b(images, digest_size=16).hexdigest(), "settings": repr(settings)}


def _measured(point: measurements.Point, value: Callable[..., Any] | None = None) -> dict[str, list]:
    """A point, remembered or computed; the one pass of the alignments always anew: Δx may be another function's now."""
    if value is None or point.measure == "alignment":
        return point.compute()
    return value(point.measure, point.epsilon, point.part.start, point.compute)


def _check_same(logits: Array, value: Callable[..., Any], workdir: str | os.PathLike) -> None:
    """Holds a few logits against those that `workdir` remembers; the last digits are another device's, or program's."""
    now = np.asarray(logits, np.float64)
    before = np.asarray(value("logits", None, 0, now.tolist))
    scale = np.abs(now[np.isfinite(now)]).max(initial=0)
    if before.shape != now.shape or not np.allclose(before, now, rtol=_SAME, atol=_SAME * scale, equal_nan=True):
        raise ValueError(f"{workdir} holds measurements of another logits_fn: choose another workdir")


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
      JSON values: `accuracy`, `epsilon_half`, `curves` and, image by image, `smallest_epsilon` by attack,
      `alpha_delta_x`, `alpha_x` and its variants, `linearity` (Figure 7's pairs), `warnings` (plain words), `classes`,
      `images`; None where not measured.

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
    bounds = _range(bounds)
    data.check(images, labels, classes, bounds)
    if delta_x is not None:
        _check_delta_x(delta_x, images)
    epsilons = _grid("epsilons", epsilons)
    l2_epsilons = None if l2_epsilons is None else _grid("l2_epsilons", l2_epsilons)
    sizes = {"step_size": step_size} | ({} if l2_step_size is None else {"l2_step_size": l2_step_size})
    counts = {"block": (block, 1), "steps": (steps, 1), "queries": (queries, 1), "cw_images": (cw_images, 0)}
    _check_options(attacks, loss, sizes, counts | {"seed": (seed, 0)})
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
    nearest = min(cw_images, len(labels))
    plan = measurements.Plan(white_box, epsilons, queries if black_box else 0, nearest_images=nearest, loss=loss)
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
        block_key="block",
    )
    nothing = parallel.replicate({"": np.zeros(1)}, on)  # pmap mistakes the axes of what follows an empty tree
    points = measurements.schedule(evaluation, nothing, plan)
    with contextlib.ExitStack() as stack:
        # As in runs from a config: what is reported is of float32 products, which a GPU or TPU shortens by default.
        stack.enter_context(jax.default_matmul_precision("highest"))
        measure = _measured
        if workdir is not None:
            kept = Workdir(workdir, _identity(split, (plan, steps, bounds, block, seed)))
            stack.callback(kept.close)
            value = kept.remembered()
            _check_same(logits_fn(jnp.asarray(split.image[:block])), value, workdir)
            measure = partial(_measured, value=value)
        bar = stack.enter_context(tqdm(points, unit="point", dynamic_ncols=True, disable=None))
        values = measurements.gather((point, measure(point)) for point in bar)
    return measurements.summarise(values, split, plan) | {"classes": classes, "images": len(labels)}
