"""`gradalign_jax.evaluate`: every measurement of the paper on your own classifier, in one call."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax import data, parallel
from gradalign_jax.evaluation import arguments, model_checks, results, schedule, warnings
from gradalign_jax.evaluation import directions as further
from gradalign_jax.evaluation import suite as suites
from gradalign_jax.evaluation.options import CW, PGD, Attacks, Directions, Square, Suite
from gradalign_jax.evaluation.programs import Evaluation, build
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.types import IMAGE_RANGE, Array, Classifier, DeltaX, Estimate, LogitsFn

_SAME = 1e-3  # largest relative difference of logits that still count as the same function's


def _identity(split: data.Split, settings: tuple) -> dict[str, str]:
    """Return what distinguishes one evaluation from another, without the classifier and Δx, which are functions."""
    images = b"".join(np.ascontiguousarray(rows).tobytes() for rows in split)
    return {"images": hashlib.blake2b(images, digest_size=16).hexdigest(), "settings": repr(settings)}


def _recorded(point: schedule.Point, value: Callable[..., Any]) -> dict[str, list]:
    """Return a point's recorded value; alignments are always measured again, since Δx may be another function now."""
    if point.measure in ("alignment", "directions"):
        return point.compute()
    return value(point.measure, point.epsilon, point.part.start, point.compute)


def _check_same(logits: Array, value: Callable[..., Any], workdir: str | os.PathLike) -> None:
    """Compare logits with those recorded in `workdir`; their last digits depend on the device and the program.

    Raises:
      ValueError: if they are those of another function.
    """
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
    pgd: PGD | None = PGD(),  # noqa: B008 (immutable)
    square: Square | None = Square(),  # noqa: B008
    cw: CW | None = None,
    delta_x: DeltaX | None = None,
    index: np.ndarray | None = None,
    directions: Directions | None = None,
    suite: str | Suite = "paper",
    norm: str = "linf",
    bounds: tuple[float, float] = IMAGE_RANGE,
    block: int = 100,
    seed: int = 0,
    workdir: str | os.PathLike | None = None,
    **keywords: Any,
) -> dict[str, Any]:
    """Measure a classifier in evaluation mode: accuracy, error curves, ε50% under each attack, alignments, warnings.

    Flax: `logits_fn = lambda x: model.apply(variables, x, train=False)`.
    Equinox: `logits_fn = jax.vmap(eqx.nn.inference_mode(model))` (with the axes the model expects).
    Plain JAX: any function of images.

    Args:
      logits_fn: float32 images `[B, ...]` in `bounds` -> logits `[B, K]`; normalization of the input belongs to it.
      images: float32 `[N, H, W, C]` or `[N, n]` in `bounds` (convert uint8 with `data.to_float`).
      labels: integers `[N]`, 0 to K - 1.
      epsilons: ascending, > 0, in units of the images: of PGD L∞ and of Square Attack.
      pgd, square, cw: the attacks' settings (`gradalign_jax.PGD`, `.Square`, `.CW`); None leaves an attack out.
      delta_x: (image, label, target, index) -> `[B, ...]`, a vector to class `target`; None leaves ᾱ_Δx out.
      index: integers `[N]`, passed to `delta_x`; by default the image's position in `images`.
      directions: further gradients, Δx and measures (`gradalign_jax.Directions`); None leaves them out.
      suite: "paper" runs the attacks above. "autoattack" and "malt" run a sequence of stronger attacks in place of PGD
        and Square Attack, each on the images that survived the ones before it; a `Suite` changes their settings.
      norm: of the attacks of a suite given by name, "linf" or "l2"; `epsilons` are in that norm.
      bounds: smallest and largest value of an image, attacked or not.
      block: images per device and program call; lower it where memory runs out.
      seed: of the attacks' randomness.
      workdir: directory that records finished measurements, from which the same call resumes after a kill.
      keywords: the flat settings of earlier releases: `attacks` ("pgd_linf", "pgd_l2", "square_linf"), `steps`,
        `step_size`, `l2_step_size`, `l2_epsilons`, `loss`, `queries`, `cw_images`, `num_classes`.

    Returns:
      JSON values: `accuracy`, `accuracy_by_class`, `epsilon_half`, `curves` and, for each image, `smallest_epsilon` by
      attack; `alpha_delta_x`, `alpha_x` and its variants, `linearity` (Figure 7's pairs), `theory` (how far the paper's
      assumptions and bounds hold), `warnings` (plain words), `classes`, `images`. None where nothing was measured.
      With `directions`, also `directions` (`evaluation.directions.summarize`). With a suite, `curves` has
      `apgd_ce_NORM`, `apgd_t_NORM`, `fab_t_NORM`, `square_NORM` (only `apgd_t_NORM` for "malt"), each the error after
      that attack and the ones before it, and `worst_NORM`; `fooled_by` names the attack, for each ε and image.

    Raises:
      ValueError: with one line on the fault in images (NaN, another range), labels, ε, an attack's settings,
        `logits_fn`, or a `workdir` that holds measurements of something else.
      TypeError: on an unknown argument.
      OutOfMemoryError: if a block does not fit into a device's memory.

    Example:
      >>> import jax.numpy as jnp, numpy as np, gradalign_jax
      >>> from gradalign_jax import PGD, Square
      >>> images = np.linspace(-0.9, 0.9, 8, dtype="float32").reshape(8, 1, 1, 1)
      >>> labels = (images > 0).ravel().astype("int32")
      >>> logits_fn = lambda x: jnp.concatenate([-x[:, 0, 0], x[:, 0, 0]], -1)
      >>> attacks = {"pgd": PGD(step_size=0.1), "square": Square(queries=20)}
      >>> result = gradalign_jax.evaluate(logits_fn, images, labels, epsilons=(0.25, 0.5, 1.0), **attacks)
      >>> result["accuracy"], round(result["epsilon_half"]["pgd_linf"], 2), result["warnings"]
      (1.0, 0.5, [])
    """
    images = np.asarray(images)
    classes = arguments.classes(logits_fn, images)
    if keywords.get("num_classes") not in (None, classes):
        raise ValueError(
            f"num_classes={keywords['num_classes']}, but logits_fn returns {classes} logits: correct one of them"
        )
    bounds = arguments.value_range(bounds)
    data.check(images, labels, classes, bounds)
    if delta_x is not None:
        arguments.check_delta_x(delta_x, images)
    if directions:
        directions = arguments.directions(directions, delta_x, images)
    arguments.check_counts({"block": (block, 1), "seed": (seed, 0)})
    places = arguments.places(index, len(labels))
    split = data.Split(np.asarray(images, np.float32), np.asarray(labels, np.int32), places)
    options = arguments.earlier_keywords(keywords, pgd, square, cw)
    attacks, chosen = _attacks(split, arguments.grid("epsilons", epsilons), *options, suite, norm, bounds)
    evaluation = build(
        Classifier(init=lambda key: {}, apply=lambda variables, image, train=False: (logits_fn(image), {})),
        split,
        attacks,
        on=parallel.devices(0, 0),
        block=block,
        key=jax.random.key(seed),
        delta_x=delta_x and Estimate(arguments.as_tree(delta_x), {}),
        block_key="block",
    )
    with contextlib.ExitStack() as stack:
        # As in runs from a config: reported numbers come from float32 products, which accelerators round by default.
        stack.enter_context(jax.default_matmul_precision("highest"))
        remember: Callable[[schedule.Point], dict[str, list]] = schedule.compute
        if workdir is not None:
            settings = (schedule.plan(attacks), attacks.pgd.steps if attacks.pgd else 40, bounds, block, seed)
            kept = Workdir(workdir, _identity(split, settings + _not_default(attacks, chosen)))
            stack.callback(kept.close)
            value = kept.remembered()
            _check_same(logits_fn(jnp.asarray(split.image[:block])), value, workdir)
            remember = partial(_recorded, value=value)
        result = _measure(evaluation, split, attacks, chosen, directions, classes, remember)
        result["warnings"] += model_checks.collect(logits_fn, jnp.asarray(split.image[:block]))
    return result | {"classes": classes, "images": len(labels)}


def _attacks(
    split: data.Split,
    epsilons: tuple[float, ...],
    pgd: PGD | None,
    square: Square | None,
    cw: CW | None,
    suite: str | Suite,
    norm: str,
    bounds: tuple[float, float],
) -> tuple[Attacks, Suite | None]:
    """Return the checked attacks, and the suite that stands in for PGD and Square Attack, if one is chosen."""
    chosen = None
    if suite == "paper":
        arguments.check_paper_norms(norm, square)
    else:
        chosen = suite if isinstance(suite, Suite) else Suite(suite, norm)
        pgd, square = None, Square(chosen.queries, norm=chosen.norm, precision=chosen.precision)
    if cw:
        cw = dataclasses.replace(cw, images=min(cw.images, len(split.label)))
    attacks = Attacks(epsilons, arguments.resolve_pgd(pgd, epsilons, split.image.shape[1:]), square, cw, bounds)
    arguments.check_attacks(attacks)
    return attacks, chosen


def _measure(
    evaluation: Evaluation,
    split: data.Split,
    attacks: Attacks,
    chosen: Suite | None,
    directions: Directions | None,
    classes: int,
    remember: Callable[[schedule.Point], dict[str, list]],
) -> dict[str, Any]:
    """Make every measurement of a function without weights."""
    nothing = parallel.replicate({"": np.zeros(1)}, evaluation.devices)  # pmap mistakes axes after an empty tree
    plan = schedule.plan(attacks)
    if chosen:
        plan = plan._replace(square_queries=0)  # the suite runs it, on the survivors
    values = schedule.measure(evaluation, nothing, plan, remember)
    result = results.summarize(values, split, plan)
    if chosen:
        wrong = values["clean", None]["predicted"] != split.label
        part = suites.measure(evaluation, chosen, nothing, attacks.epsilons, wrong, classes, attacks.bounds, remember)
        for name in ("curves", "epsilon_half", "smallest_epsilon"):
            result[name] |= part[name]
        result["fooled_by"] = part["fooled_by"]
        blind = float(np.mean(values["alignment", None]["zero_gradient"]))
        result["warnings"] += warnings.blind_suite(chosen.name, blind) + part["warnings"]
    if directions:
        target = values["alignment", None]["target"]
        result["directions"] = further.measure(evaluation, nothing, split, target, directions, remember)
    return result


def _not_default(attacks: Attacks, suite: Suite | None) -> tuple:
    """Return the settings that earlier releases lacked, unless they are the defaults."""
    if suite:
        return (suite,)
    cw, precisions = attacks.cw, [each.precision for each in (attacks.pgd, attacks.square) if each]
    same = cw is None or dataclasses.replace(cw, images=CW.images) == CW()
    return (() if same else (cw,)) + (() if set(precisions) <= {"float32"} else tuple(precisions))
