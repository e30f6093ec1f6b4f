"""Classifiers under suites of attacks, in groups of equal settings."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gradalign_jax.report.groups import Group, grouped
from gradalign_jax.report.results import Classifier, as_measured_by, measurement, measurements
from gradalign_jax.report.runs import Run

NAMES = {"autoattack": "AutoAttack", "malt": "MALT"}
STEPS, QUERIES = 100, 5000  # of AutoAttack as it is published
_CURVE = Mapping[str, Any]


class Settings(NamedTuple):
    """What two measurements by a suite must have in common to be averaged, beside their runs' settings.

    Attributes:
        name: "autoattack" or "malt".
        norm: "linf" or "l2".
        steps: Gradient steps of each attack.
        queries: Queries of Square Attack.
        images: Number of test images; None where it is not recorded.
        epsilons: The grid, 0 first.
    """

    name: str
    norm: str
    steps: int
    queries: int
    images: int | None
    epsilons: tuple[float, ...]

    @property
    def note(self) -> str:
        """Difference from the published suite."""
        steps = "" if self.steps == STEPS else f"{self.steps:,} of {STEPS} steps"
        square = self.name == "autoattack" and self.queries != QUERIES
        return "; ".join(filter(None, (steps, f"{self.queries:,} of {QUERIES:,} queries" if square else "")))


def curves(member: Classifier) -> dict[str, _CURVE]:
    """Return a classifier's error curves under its suite by attack, names without the norm: "apgd_ce", "worst"."""
    suite = measurement(member)["suite"]
    return {name.removesuffix(f"_{suite['norm']}"): curve for name, curve in suite["curves"].items()}


def suite_groups(
    classifiers: Iterable[Classifier], dataset: str, method: str, norm: str | None = None
) -> list[tuple[Settings, Group]]:
    """Return the groups of one row of Table 2 under suites: AutoAttack first, L∞ first, most steps and images first."""
    by_settings: Mapping[Settings, list[Classifier]] = defaultdict(list)
    for classifier in classifiers:
        if (classifier.run.dataset, classifier.method) != (dataset, method) or not classifier.has_table_2_epsilon:
            continue
        by_source = {}
        for source in measurements(classifier):
            settings = _settings(source)
            if settings and norm in (None, settings.norm):
                by_source.setdefault(settings, source)
        for settings, source in by_source.items():
            by_settings[settings].append(as_measured_by(classifier, source))
    ordered: Sequence[Settings] = sorted(by_settings, key=_order)
    return [(settings, group) for settings in ordered for group in grouped(by_settings[settings])]


def _settings(source: Run) -> Settings | None:
    suite = source.result.get("suite") or {}
    name, norm = suite.get("name"), suite.get("norm")
    worst = (suite.get("curves") or {}).get(f"worst_{norm}")
    if not name or not norm or worst is None:
        return None
    steps, queries = source.setting("evaluate.suite_steps"), source.setting("evaluate.suite_queries")
    steps, queries = STEPS if steps is None else steps, QUERIES if queries is None else queries
    return Settings(name, norm, steps, queries, worst.get("images"), tuple(worst["epsilons"]))


def _order(settings: Settings) -> tuple:
    known = settings.name in NAMES
    rank = list(NAMES).index(settings.name) if known else len(NAMES)
    images = settings.images or 0
    return rank, settings.name, settings.norm != "linf", -settings.steps, -images, -settings.queries, settings.epsilons
