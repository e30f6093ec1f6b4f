"""Suites of attacks: the worst case of each image over several attacks, at every ε of a list.

An attack gets only the images that no attack before it fooled, packed into full blocks, with ε in ascending order: an
image that is fooled at one ε counts as fooled at every larger one. A targeted attack tries one class after the other,
each on the images that are left. Images that are misclassified without an attack are not attacked. The blocks of one
call are a point, so a killed run resumes at the attack, class and block where it was.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax import alignment, robustness
from gradalign_jax.attacks import apgd, fab, targets
from gradalign_jax.evaluation import results, schedule, warnings
from gradalign_jax.evaluation.options import Suite
from gradalign_jax.evaluation.programs import Evaluation, Model
from gradalign_jax.evaluation.schedule import Point
from gradalign_jax.ops import precision
from gradalign_jax.terminal import progress_bar
from gradalign_jax.types import Array, Variables, predicted

_DLR_CLASSES = 4  # the fewest for which the targeted DLR loss is defined
_PARTS = 4  # programs take this part of a block: each waits for its slowest image, and the last is padded
_LEAST_BLOCK = 5  # images; a pass over fewer costs more for each


class Stage(NamedTuple):
    """One attack of a suite.

    call: (variables, place `[n]`, epsilon `[n]`, turn, restart=0) -> `distance` `[n]`, the norm of the change that
      fooled (or ε where the attack minimizes no norm), +inf where the attack failed; and numbers of `gradients` and
      `queries`, `[n]`. `restart` chooses another random start.
    minimal: the attack minimizes the norm, so that one call serves every ε.
    block: images per call and device.
    turns: number of calls at one ε, each on the images that those before it left: one for each target class.
    preparation: gradients per image that choose the target classes.
    """

    name: str
    call: Callable[..., dict[str, np.ndarray]]
    minimal: bool
    block: int
    turns: int = 1
    preparation: int = 0


class Outcome(NamedTuple):
    """The outcome of a suite at each ε for each image.

    fooled: whether the first 0, 1, ..., A attacks fooled it, bool `[1 + A, E, N]`; 0: misclassified without an attack.
    gradients, queries, seconds: spent by each attack, `[A, N]`, over all ε.
    """

    fooled: np.ndarray
    gradients: np.ndarray
    queries: np.ndarray
    seconds: np.ndarray


def measure(
    evaluation: Evaluation,
    suite: Suite,
    variables: Variables,
    epsilons: Sequence[float],
    wrong: np.ndarray,
    classes: int,
    bounds: tuple[float, float],
    remember: Callable[[Point], dict[str, list]] = schedule.compute,
) -> dict[str, Any]:
    """Run a suite and return its part of a result.

    Args:
      evaluation: the programs, with Square Attack in the suite's norm.
      suite: the settings.
      variables: the weights, with a leading device axis.
      epsilons: ascending, > 0.
      wrong: bool `[N]`, the images that are misclassified without an attack.
      classes: K.
      bounds: smallest and largest value of an attacked image.
      remember: returns a point's recorded value, or computes and records it.

    Returns:
      `curves`, by attack and as "worst_NORM": `epsilons`, `errors` (the share misclassified under this attack or one
      before it), ε50%, means of `gradients` and `queries` per image over all ε, `seconds`. `epsilon_half`, by the same
      names. `smallest_epsilon` of "worst_NORM". `fooled_by`: for each ε and image the name of the attack that fooled
      it, "clean" where it was misclassified without one, None where it survived. `warnings`.
    """
    attacks, epsilons = stages(evaluation, suite, classes, bounds), list(map(float, epsilons))
    outcome = run(attacks, variables, epsilons, wrong, len(evaluation.devices), remember)
    again = start_again(attacks[0], variables, epsilons, outcome.fooled[-1], remember)
    return summarize([stage.name for stage in attacks], suite.norm, epsilons, outcome, again)


def stages(evaluation: Evaluation, suite: Suite, classes: int, bounds: tuple[float, float]) -> list[Stage]:
    """Return the attacks of a suite, in order."""
    evaluation = evaluation.resized(max(evaluation.block // _PARTS, min(evaluation.block, _LEAST_BLOCK)))
    count = min(suite.targets, classes - 1)
    loss = "dlr" if classes >= _DLR_CLASSES else "margin"
    towards = apgd.search(suite.norm, suite.steps, 1, loss, bounds=bounds)
    if suite.name == "malt":

        def nearest(model, batch):
            return nearest_classes(model, batch.image, batch.label, count, suite.norm)

        stage = _gradient_stage(evaluation, suite, "apgd_t", towards, _targets(evaluation, nearest), count)
        return [stage._replace(preparation=classes)]

    likeliest = _targets(evaluation, lambda model, batch: targets.likeliest(model(batch.image), batch.label, count))
    untargeted = apgd.search(suite.norm, suite.steps, 1, "cross_entropy", bounds=bounds)
    boundary = fab.search(suite.norm, suite.steps, 1, bounds=bounds)

    def black_box(variables, place, epsilon, turn):
        found = evaluation.square_pairs(variables, place, epsilon, suite.queries)
        nothing = np.zeros(len(place), np.int32)
        distance = np.where(found["fooled"], epsilon, np.inf)
        return {"distance": distance, "gradients": nothing, "queries": found["queries"]}

    return [
        _gradient_stage(evaluation, suite, "apgd_ce", untargeted),
        _gradient_stage(evaluation, suite, "apgd_t", towards, likeliest, count),
        _gradient_stage(evaluation, suite, "fab_t", boundary, likeliest, count),
        Stage(f"square_{suite.norm}", black_box, False, _PARTS * evaluation.block),
    ]


def _targets(evaluation: Evaluation, choose: Callable) -> Callable[[Variables], np.ndarray]:
    """Build a function that returns choose(model, batch) of all images, int `[N, T]`, computed once."""
    program = evaluation.blocks.map(lambda variables, batch: choose(Model(evaluation.classifier, variables), batch))
    kept: list[np.ndarray] = []

    def chosen(variables: Variables) -> np.ndarray:
        if not kept:
            kept.append(program(variables))
        return kept[0]

    return chosen


def nearest_classes(logits_fn: Callable, image: Array, label: Array, count: int, norm: str) -> Array:
    """Return the `count` classes with the nearest linearized boundary, nearest first, int `[B, T]` (MALT, Eqs. 4-5).

    A class's distance is (logit_y - logit_k) / |∇(logit_y - logit_k)|, in the dual of the attack's norm: L1 for L∞.
    """
    logits, jacobian = alignment.input_jacobian(logits_fn, image)
    rows, flat = jnp.arange(len(image)), jacobian.reshape(*logits.shape, -1)
    difference = flat[rows, label][:, None] - flat
    scale = jnp.max(jnp.abs(difference), axis=-1)  # keeps the squares of very small gradients from vanishing
    scaled = difference / jnp.where(scale > 0, scale, 1)[..., None]
    size = scale * (jnp.abs(scaled).sum(-1) if norm == "linf" else jnp.linalg.norm(scaled, axis=-1))
    gap = logits[rows, label][:, None] - logits
    distance = jnp.where(size > 0, gap / jnp.where(size > 0, size, 1), jnp.finfo(gap.dtype).max)
    return jax.lax.top_k(jnp.where(jax.nn.one_hot(label, logits.shape[-1], dtype=bool), -jnp.inf, -distance), count)[1]


def _gradient_stage(
    evaluation: Evaluation,
    suite: Suite,
    name: str,
    search: Callable,
    chosen: Callable[[Variables], np.ndarray] | None = None,
    turns: int = 1,
) -> Stage:
    """Build the stage of an attack, `apgd.search` or `fab.search`, with a turn for each column of chosen(variables)."""
    minimal = name == "fab_t"

    def measure(variables, batch, keys, rows):
        model, epsilon, target = Model(evaluation.classifier, variables), rows["epsilon"], rows.get("target")
        if target is not None:
            keys = targets.keys(keys, target[:, None])[:, 0]
        with precision.scope(suite.precision):
            found = search(model.searched(suite.precision), keys, batch.image, batch.label, epsilon, target)
        wrong = predicted(model(found.image)) != batch.label
        distance = jnp.where(wrong, found.distance if minimal else epsilon, jnp.inf)
        return {"distance": distance, "gradients": found.gradients}

    program = evaluation.blocks.program(measure)

    def call(variables, place, epsilon, turn, restart=0):
        rows = {"place": place, "epsilon": epsilon}
        if chosen:
            rows["target"] = chosen(variables)[place, turn]
        found = program(variables, rows, restart=restart)
        return found | {"queries": np.zeros(len(place), np.int32)}

    return Stage(f"{name}_{suite.norm}", call, minimal, _PARTS * evaluation.block, turns)


def run(
    attacks: Sequence[Stage],
    variables: Variables,
    epsilons: Sequence[float],
    wrong: np.ndarray,
    devices: int = 1,
    remember: Callable[[Point], dict[str, list]] = schedule.compute,
) -> Outcome:
    """Run the attacks of a suite.

    Args:
      attacks: `stages(...)`.
      variables: the weights, with a leading device axis.
      epsilons: ascending, > 0.
      wrong: bool `[N]`, the images that are misclassified without an attack.
      devices: number of devices.
      remember: returns a point's recorded value, or computes and records it.
    """
    fooled = [np.tile(wrong, (len(epsilons), 1))]
    spent = {name: np.zeros((len(attacks), len(wrong))) for name in ("gradients", "queries", "seconds")}
    with progress_bar(total=len(attacks) * len(epsilons), unit="ε") as bar:
        for number, stage in enumerate(attacks):
            now = fooled[-1].copy()
            # A minimal-norm attack runs once, with the largest ε; its distance decides for every ε.
            for epsilon in epsilons[-1:] if stage.minimal else epsilons:
                row = epsilons.index(epsilon)
                for turn in range(stage.turns):
                    alive = np.flatnonzero(~(now.all(0) if stage.minimal else now[row]))
                    bar.set_description(f"{stage.name}, ε={epsilon:g}, {len(alive)} images left")
                    for place, value in _points(stage, variables, epsilon, turn, alive, devices, remember):
                        distance = np.asarray(value["distance"], float)
                        now[:, place] |= np.asarray(epsilons)[:, None] >= distance[None]
                        for name, values in spent.items():
                            values[number, place] += value[name]
                bar.update(len(epsilons) if stage.minimal else 1)
            spent["gradients"][number] += stage.preparation * ~fooled[-1].all(0)
            fooled.append(now)
    return Outcome(np.stack(fooled), spent["gradients"], spent["queries"], spent["seconds"])


def _points(
    stage: Stage,
    variables: Variables,
    epsilon: float,
    turn: int,
    alive: np.ndarray,
    devices: int,
    remember: Callable[[Point], dict[str, list]],
):
    """Yield positions and results of the images that are left, one call at a time."""
    measure = stage.name if stage.turns == 1 else f"{stage.name} {turn + 1}"
    if devices > 1:  # a call is as many images; another number of devices must not take a recorded one for its own
        measure += f", {devices} devices"
    for first in range(0, len(alive), stage.block * devices):
        place = alive[first : first + stage.block * devices].astype(np.int32)

        def compute(place=place) -> dict[str, list]:
            started = time.monotonic()
            found = stage.call(variables, place, np.full(len(place), epsilon, np.float32), turn)
            distance = np.asarray(found["distance"], float)
            within = distance <= np.float32(epsilon)  # ε rounded to float32 may exceed ε itself
            distance = np.where(within, np.minimum(distance, epsilon), np.inf)
            listed = {name: np.asarray(found[name]).tolist() for name in ("gradients", "queries")}
            each = (time.monotonic() - started) / len(place)
            return listed | {"distance": results.finite(distance), "seconds": [each] * len(place)}

        value = remember(Point(measure, float(epsilon), range(first, first + len(place)), compute))
        if len(value["distance"]) != len(place):  # of an older version, which made blocks of another size
            value = compute()
        yield place, value | {"distance": [np.inf if d is None else d for d in value["distance"]]}


def start_again(
    attack: Stage,
    variables: Variables,
    epsilons: Sequence[float],
    fooled: np.ndarray,
    remember: Callable[[Point], dict[str, list]] = schedule.compute,
) -> tuple[float, int, int] | None:
    """Run an attack from another random start, at the ε where about half of the images are fooled.

    Args:
      attack: one of `stages`.
      variables: the weights, with a leading device axis.
      epsilons: ascending, > 0.
      fooled: bool `[E, N]`, by the whole suite.
      remember: as in `run`.

    Returns:
      ε, the number of images attacked again (at most one block of the survivors at that ε), and how many of them were
      fooled; None where no image survived.
    """
    row = int(np.abs(fooled.mean(1) - 0.5).argmin())
    place = np.flatnonzero(~fooled[row])[: attack.block].astype(np.int32)
    if not len(place):
        return None

    def compute() -> dict[str, list]:
        found = attack.call(variables, place, np.full(len(place), epsilons[row], np.float32), 0, restart=1)
        return {"fooled": np.isfinite(found["distance"]).tolist()}

    value = remember(Point(f"{attack.name} again", epsilons[row], range(len(place)), compute))
    return epsilons[row], len(place), int(np.sum(value["fooled"]))


def summarize(
    names: Sequence[str],
    norm: str,
    epsilons: Sequence[float],
    outcome: Outcome,
    again: tuple[float, int, int] | None = None,
) -> dict[str, Any]:
    """Return a suite's numbers, as in `measure`; `again` is the result of `start_again`."""
    grid = [0.0, *epsilons]
    clean = outcome.fooled[0][:1]
    rows = [np.concatenate([clean, fooled]) for fooled in outcome.fooled]
    curves = {}
    for number, name in enumerate(names):
        spent = {key: float(getattr(outcome, key)[number].mean()) for key in ("gradients", "queries")}
        seconds = float(outcome.seconds[number].sum())
        curves[name] = results.curve(grid, rows[number + 1]) | spent | {"seconds": seconds}
    curves[f"worst_{norm}"] = results.curve(grid, rows[-1])
    labels = np.array(["clean", *names], object)[outcome.fooled.argmax(0)]
    labels[~outcome.fooled[-1]] = None
    smallest = robustness.smallest_epsilon(grid, rows[-1])
    return {
        "curves": curves,
        "epsilon_half": {name: curve["epsilon_half"] for name, curve in curves.items()},
        "smallest_epsilon": {f"worst_{norm}": results.finite(smallest)},
        "fooled_by": labels.tolist(),
        "warnings": warnings.of_suite(curves, norm, again),
    }
