"""Which runs belong together: of equal settings but for the seed. Nothing unlike is averaged."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from gradalign_jax.report import departures, statistics
from gradalign_jax.report.results import Classifier, settings_of
from gradalign_jax.report.runs import Run

_Of = TypeVar("_Of")


class Group(NamedTuple):
    """Classifiers that differ in their seed alone, and what tells them from others of their row."""

    members: tuple[Classifier, ...]
    apart: str

    @property
    def note(self) -> str:
        """What tells them apart, and in what they differ from the paper's."""
        if not self.members:
            return ""
        first = next((member for member in self.members if member.sources), self.members[0])
        told = [self.apart, *departures.of_training(first.run)]
        told += departures.of_measuring(first.run) if first.own else []
        for evaluation in first.sources:
            more = [words for words in departures.of_measuring(evaluation) if words not in told]
            told += [f"evaluation: {', '.join(more)}"] if more and first.own else more
        return "; ".join(dict.fromkeys(filter(None, told)))


def _settings(run: Run) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings_of(run).items()))


def _one_a_seed(found: Iterable[_Of], run: Callable[[_Of], Run]) -> tuple[_Of, ...]:
    """The newest of every seed, by seed: one run copied or repeated is still one run."""
    by_seed = {run(one).seed: one for one in sorted(found, key=lambda one: run(one).written)}
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def grouped(found: Iterable[Classifier]) -> list[Group]:
    """Classifiers of one row in groups of equal settings: the longest training first, then those most like the paper's.

    What evaluations added counts as well; a classifier without any joins the largest group of its training.
    """
    by_training = defaultdict(lambda: defaultdict(list))
    for classifier in found:
        measured = tuple(sorted(map(_settings, classifier.sources)))
        by_training[_settings(classifier.run)][measured].append(classifier)
    parts = []
    for by_measuring in by_training.values():
        bare = by_measuring.pop((), [])
        evaluated = sorted(by_measuring.values(), key=len, reverse=True) or [[]]
        parts += [evaluated[0] + bare, *evaluated[1:]]
    parts.sort(key=lambda part: (departures.best_first(part[0].run), -len(part), _settings(part[0].run)))
    return [
        Group(_one_a_seed(part, lambda classifier: classifier.run), apart)
        for part, apart in zip(parts, _differences(parts), strict=True)
    ]


def _differences(parts: Sequence[Sequence[Classifier]]) -> list[str]:
    """The keys, with their values, that tell each group from the others and are not told in words of their own."""
    flat, told = [], []
    for members in parts:
        sources = next((m.sources for m in members if m.sources), ())
        measured = {f"{key}, measured": value for run in sources for key, value in _settings(run)}
        flat.append(dict(_settings(members[0].run)) | measured)
        words = (words for run in (members[0].run, *sources) for words in departures.departures(run))
        told.append(departures.TOLD | {text.split()[0] for text in words})
    shared = set.intersection(*map(set, flat)) if flat else set()  # keys that only some versions know tell nothing
    differing = [key for key in sorted(shared) if len({settings[key] for settings in flat}) > 1]
    found = []
    for settings, known in zip(flat, told, strict=True):
        names = [f"{key}={settings[key]}" for key in differing if key.partition(",")[0] not in known]
        found.append(", ".join(names[:4]) + (" …" if len(names) > 4 else ""))
    return found


def longest(
    found: Iterable[Classifier], dataset: str, method: str, has: Callable[[Classifier], Any] = lambda classifier: True
) -> tuple[Classifier, ...]:
    """The classifiers of a row of Table 2 that have something, those trained longest where settings differ; or ()."""
    groups = grouped(c for c in found if (c.run.dataset, c.method) == (dataset, method) and c.as_in_table_2)
    return next((group.members for group in groups if any(map(has, group.members))), ())


def alike(runs: Iterable[Run]) -> list[Run]:
    """The runs of the settings that did most, the newest of every seed."""
    by_settings = defaultdict(list)
    for run in runs:
        by_settings[_settings(run)].append(run)
    best = min(by_settings.values(), key=lambda same: departures.best_first(same[0]), default=[])
    return list(_one_a_seed(best, lambda run: run))


def pgd_series(found: Sequence[Classifier], dataset: str) -> list[Classifier]:
    """PGD-trained classifiers of a data set at all ε, those of the longest settings: the points of Table 3 and S7."""
    mine = [c for c in found if c.run.dataset == dataset and c.method == "pgd" and c.values["pgd_linf"] is not None]
    groups: Mapping[tuple, list[Classifier]] = defaultdict(list)
    for classifier in mine:
        settings = {key: value for key, value in settings_of(classifier.run).items() if key != "attack.epsilon"}
        groups[tuple(sorted(settings.items()))].append(classifier)
    if not groups:
        return []
    best = min(groups.values(), key=lambda g: (-len({c.epsilon for c in g}), departures.best_first(g[0].run)))
    by_epsilon = defaultdict(list)
    for classifier in best:
        by_epsilon[classifier.epsilon].append(classifier)
    return [c for epsilon in sorted(by_epsilon) for c in _one_a_seed(by_epsilon[epsilon], lambda c: c.run)]


def correlation(series: Sequence[Classifier], alpha: str) -> tuple[float | None, int]:
    """Pearson's r of an alignment with ε50% under PGD L∞, and over how many classifiers; None below three ε."""
    pairs = [(c.values[alpha], c.values["pgd_linf"], c.epsilon) for c in series if c.values[alpha] is not None]
    if len({epsilon for *_, epsilon in pairs}) < 3:
        return None, len(pairs)
    return statistics.pearson([a for a, _, _ in pairs], [half for _, half, _ in pairs]), len(pairs)
