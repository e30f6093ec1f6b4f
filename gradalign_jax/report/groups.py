"""Groups of comparable runs: equal settings but for the seed. Runs of different settings are never averaged."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from gradalign_jax.report import differences
from gradalign_jax.report.results import Classifier, settings_of
from gradalign_jax.report.runs import Run

_Item = TypeVar("_Item")


class Group(NamedTuple):
    """Classifiers that differ only in their seed, and the settings that distinguish them from others of their row."""

    members: tuple[Classifier, ...] = ()
    distinction: str = ""

    @property
    def note(self) -> str:
        """Distinction from other groups, then differences from the paper."""
        if not self.members:
            return ""
        first = next((member for member in self.members if member.sources), self.members[0])
        notes = [self.distinction, *differences.in_training(first.run)]
        notes += differences.in_measuring(first.run) if first.uses_own_values else []
        for evaluation in first.sources:
            more = [words for words in differences.in_measuring(evaluation) if words not in notes]
            notes += [f"evaluation: {', '.join(more)}"] if more and first.uses_own_values else more
        return "; ".join(dict.fromkeys(filter(None, notes)))


def _settings(run: Run) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings_of(run).items()))


def _newest_of_each_seed(items: Iterable[_Item], run_of: Callable[[_Item], Run]) -> tuple[_Item, ...]:
    """Return the newest item of each seed, sorted by seed: a run that was copied or repeated counts once."""
    by_seed = {run_of(item).seed: item for item in sorted(items, key=lambda item: run_of(item).written)}
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def grouped(classifiers: Iterable[Classifier]) -> list[Group]:
    """Return the groups of the classifiers of one row, longest training first, then fewest differences from the paper.

    The settings of evaluations count as well; a classifier without evaluations joins the largest group of its training.
    """
    by_training = defaultdict(lambda: defaultdict(list))
    for classifier in classifiers:
        measured = tuple(sorted(map(_settings, classifier.sources)))
        by_training[_settings(classifier.run)][measured].append(classifier)
    parts = []
    for by_measuring in by_training.values():
        without = by_measuring.pop((), [])
        evaluated = sorted(by_measuring.values(), key=len, reverse=True) or [[]]
        parts += [evaluated[0] + without, *evaluated[1:]]
    parts.sort(key=lambda part: (differences.work_order(part[0].run), -len(part), _settings(part[0].run)))
    return [
        Group(_newest_of_each_seed(part, lambda classifier: classifier.run), distinction)
        for part, distinction in zip(parts, _distinctions(parts), strict=True)
    ]


def _distinctions(parts: Sequence[Sequence[Classifier]]) -> list[str]:
    """Return for each group the keys and values that differ between groups and that no other words describe."""
    flat, described = [], []
    for members in parts:
        sources = next((m.sources for m in members if m.sources), ())
        measured = {f"{key}, measured": value for run in sources for key, value in _settings(run)}
        flat.append(dict(_settings(members[0].run)) | measured)
        words = (words for run in (members[0].run, *sources) for words in differences.differences(run))
        described.append(differences.DESCRIBED | {text.split()[0].rstrip(":") for text in words})
    shared = set.intersection(*map(set, flat)) if flat else set()
    differing = [key for key in sorted(shared) if len({settings[key] for settings in flat}) > 1]
    found = []
    for settings, known in zip(flat, described, strict=True):
        names = [f"{key}={settings[key]}" for key in differing if key.partition(",")[0] not in known]
        found.append(", ".join(names[:4]) + (" …" if len(names) > 4 else ""))
    return found


def longest_trained(
    classifiers: Iterable[Classifier],
    dataset: str,
    method: str,
    has: Callable[[Classifier], Any] = lambda classifier: True,
) -> tuple[Classifier, ...]:
    """Return the longest-trained group of a row of Table 2 in which a member `has` something; () if there is none."""
    row = [c for c in classifiers if (c.run.dataset, c.method) == (dataset, method) and c.has_table_2_epsilon]
    return next((group.members for group in grouped(row) if any(map(has, group.members))), ())


def most_complete(runs: Iterable[Run]) -> list[Run]:
    """Return the comparable runs that did most work, the newest of each seed."""
    by_settings = defaultdict(list)
    for run in runs:
        by_settings[_settings(run)].append(run)
    best = min(by_settings.values(), key=lambda comparable: differences.work_order(comparable[0]), default=[])
    return list(_newest_of_each_seed(best, lambda run: run))


def pgd_series(classifiers: Sequence[Classifier], dataset: str) -> list[Classifier]:
    """Return the PGD-trained classifiers of a data set at all ε, sorted by ε: the points of Table 3 and Figure S7.

    All have the same settings but for ε and seed: those with most ε, then most work.
    """
    candidates = [c for c in classifiers if c.run.dataset == dataset and c.epsilon is not None]
    candidates = [c for c in candidates if c.values["pgd_linf"] is not None]
    groups: Mapping[tuple, list[Classifier]] = defaultdict(list)
    for classifier in candidates:
        settings = {key: value for key, value in settings_of(classifier.run).items() if key != "attack.epsilon"}
        groups[tuple(sorted(settings.items()))].append(classifier)
    if not groups:
        return []
    best = min(groups.values(), key=lambda g: (-len({c.epsilon for c in g}), differences.work_order(g[0].run)))
    by_epsilon = defaultdict(list)
    for classifier in best:
        by_epsilon[classifier.epsilon].append(classifier)
    return [c for epsilon in sorted(by_epsilon) for c in _newest_of_each_seed(by_epsilon[epsilon], lambda c: c.run)]
