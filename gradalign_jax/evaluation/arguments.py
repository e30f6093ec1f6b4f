"""Checks of the arguments of `gradalign_jax.evaluate`: one line for each fault, before anything expensive runs."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gradalign_jax.attacks import pgd as pgd_attack
from gradalign_jax.errors import first_line
from gradalign_jax.evaluation.options import CW, PGD, Attacks, Directions, Square
from gradalign_jax.evaluation.results import ATTACKS
from gradalign_jax.types import IMAGE_RANGE, DeltaX, LogitsFn


def classes(logits_fn: LogitsFn, image: np.ndarray) -> int:
    """Return the number of classes, by tracing `logits_fn` without computing anything.

    Args:
      logits_fn: the classifier.
      image: `[N, ...]`, of which only the shape is used.

    Raises:
      ValueError: if it cannot be traced or does not return logits `[B, K]` with K >= 2.
    """
    two = jax.ShapeDtypeStruct((2, *image.shape[1:]), jnp.float32)
    try:
        logits = jax.eval_shape(logits_fn, two)
    except Exception as error:
        cause = first_line(error)
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


def check_delta_x(delta_x: DeltaX, image: np.ndarray) -> None:
    """Check the shape that `delta_x` returns for images `[N, ...]`, by tracing it without computing anything.

    Raises:
      ValueError: if it cannot be traced or does not return vectors of the images' shape.
    """
    two, row = jax.ShapeDtypeStruct((2, *image.shape[1:]), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    try:
        shape = getattr(jax.eval_shape(delta_x, two, row, row, row), "shape", None)
    except Exception as error:
        cause = first_line(error)
        raise ValueError(f"delta_x cannot be traced by JAX on images {two.shape} and int32 rows ({cause})") from error
    if shape != two.shape:
        raise ValueError(f"delta_x returns {shape} for images {two.shape}: it must return vectors of the images' shape")


def directions(chosen: Directions, delta_x: DeltaX | None, image: np.ndarray) -> Directions:
    """Return the settings with `delta_x` among their Δx, all of them as `jax.tree_util.Partial`.

    Raises:
      ValueError: if a Δx cannot be traced or does not return vectors of the images' shape.
    """
    functions = dict(chosen.delta_x) | ({} if delta_x is None else {"delta_x": delta_x})
    for function in functions.values():
        check_delta_x(function, image)
    space = None if chosen.tangent_space is None else as_tree(chosen.tangent_space)
    return chosen.with_functions({name: as_tree(f) for name, f in functions.items()}, space)


def as_tree(function: Callable[..., Any]) -> Partial:
    """Return a function as a tree of its arrays, which a program takes as arguments; one in another has no leaves."""
    return function if isinstance(function, Partial) else Partial(function)


def grid(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Return the ε of an error curve as plain numbers.

    Raises:
      ValueError: unless they are finite, positive and ascending.
    """
    try:
        epsilons = tuple(map(float, np.ravel(values)))
    except (TypeError, ValueError):
        epsilons = ()
    if not (epsilons and epsilons[0] > 0 and np.all(np.diff(epsilons) > 0) and math.isfinite(epsilons[-1])):
        raise ValueError(f"{name} must be ascending numbers > 0, got {values}")
    return epsilons


def value_range(bounds: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value of an image as plain numbers.

    Raises:
      ValueError: unless `bounds` is two ascending numbers.
    """
    if np.shape(bounds) != (2,) or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds={bounds} must be the smallest and the largest value of an image")
    return bounds if bounds is IMAGE_RANGE else (float(bounds[0]), float(bounds[1]))


def check_paper_norms(norm: str, square: Square | None) -> None:
    """Check that an L2 norm is only asked of a suite: the paper's Square Attack is in L∞.

    Raises:
      ValueError: if `norm` or Square Attack's is another one.
    """
    if norm != "linf" or (square and square.norm != "linf"):
        raise ValueError(
            "norm='l2' needs a suite (suite='autoattack' or 'malt'): the paper attacks with PGD in both norms and with "
            "Square Attack in L∞"
        )


def check_attacks(attacks: Attacks) -> None:
    """Check the settings of every attack.

    Raises:
      ValueError: if a loss is unknown, a size is not a positive number, or a count is below its minimum.
    """
    sizes: dict[str, Any] = {}
    counts: dict[str, tuple[Any, int]] = {}
    if attacks.pgd:
        white = attacks.pgd
        if white.loss not in pgd_attack.LOSSES:
            raise ValueError(f"unknown attack loss {white.loss!r}: use one of {', '.join(sorted(pgd_attack.LOSSES))}")
        sizes |= {"step_size": white.step_size, "l2_step_size": white.l2_step_size}
        counts |= {"steps": (white.steps, 1)}
    if attacks.square:
        counts |= {"queries": (attacks.square.queries, 1), "square.images": (attacks.square.images, 0)}
    if attacks.cw:
        sizes |= {"cw.learning_rate": attacks.cw.learning_rate}
        counts |= {"cw_images": (attacks.cw.images, 0), "cw.iterations": (attacks.cw.iterations, 1)}
    for name, size in sizes.items():
        if not isinstance(size, Real) or not (float(size) > 0 and math.isfinite(size)):
            raise ValueError(f"{name}={size} must be a number > 0")
    check_counts(counts)


def check_counts(counts: dict[str, tuple[Any, int]]) -> None:
    """Check counts, given by name with their minimum.

    Raises:
      ValueError: unless each is an integer and at least its minimum.
    """
    for name, (count, least) in counts.items():
        if not isinstance(count, Integral) or count < least:
            raise ValueError(f"{name}={count} must be an integer >= {least}")


def places(index: Any, count: int) -> np.ndarray:
    """Return the images' places in their data set, int32 `[N]`.

    Raises:
      ValueError: if `index` is not one integer >= 0 per image.
    """
    if index is None:
        return np.arange(count, dtype=np.int32)
    index = np.asarray(index)
    if index.shape != (count,):
        raise ValueError(f"index has shape {index.shape} for {count} images: give one integer per image")
    if not np.issubdtype(index.dtype, np.integer) or index.min() < 0 or index.max() > np.iinfo(np.int32).max:
        raise ValueError("index must hold integers from 0 to 2147483647: the images' places in their data set")
    return index.astype(np.int32)


def earlier_keywords(
    keywords: dict[str, Any], pgd: PGD | None, square: Square | None, cw: CW | None
) -> tuple[PGD | None, Square | None, CW | None]:
    """Return the options with the flat keywords of earlier releases applied.

    Raises:
      TypeError: on an unknown keyword.
      ValueError: on an unknown attack.
    """
    fields = {"steps", "step_size", "l2_step_size", "l2_epsilons", "loss"}
    if unknown := keywords.keys() - fields - {"attacks", "queries", "cw_images", "num_classes"}:
        raise TypeError(f"evaluate() has no argument {min(unknown)!r}")
    pgd = pgd and dataclasses.replace(pgd, **{name: keywords[name] for name in fields & keywords.keys()})
    if square and "queries" in keywords:
        square = dataclasses.replace(square, queries=keywords["queries"])
    if "cw_images" in keywords:
        cw = dataclasses.replace(cw or CW(), images=keywords["cw_images"])
    if "attacks" in keywords:
        names = keywords["attacks"]
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(f"attacks={names!r} must be a list of names: some of {', '.join(ATTACKS)}")
        for name in names:
            if name not in ATTACKS:
                raise ValueError(f"unknown attack {name!r}: use some of {', '.join(ATTACKS)}")
        norms = tuple(name.removeprefix("pgd_") for name in names if name.startswith("pgd_"))
        pgd = pgd and dataclasses.replace(pgd, norms=norms)
        square = square if "square_linf" in names else None
    return pgd, square, cw


def resolve_pgd(pgd: PGD | None, epsilons: tuple[float, ...], shape: tuple[int, ...]) -> PGD | None:
    """Return the settings of PGD with L2's ε and step size filled in.

    Args:
      pgd: the settings; None: no PGD.
      epsilons: of L∞.
      shape: of one image.

    Raises:
      ValueError: if a norm is unknown, or L2's ε are not positive and ascending.
    """
    if pgd is None:
        return None
    if unknown := set(pgd.norms) - {"linf", "l2"}:
        raise ValueError(f"unknown norm {min(unknown)!r} of pgd: use linf, l2 or both")
    root = math.sqrt(math.prod(shape))
    l2_epsilons = tuple(e * root for e in epsilons) if pgd.l2_epsilons is None else pgd.l2_epsilons
    step_size = pgd.l2_step_size
    if step_size is None and isinstance(pgd.step_size, Real):
        step_size = pgd.step_size * root
    return dataclasses.replace(pgd, l2_epsilons=grid("l2_epsilons", l2_epsilons), l2_step_size=step_size)
