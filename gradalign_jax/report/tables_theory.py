"""How far the assumptions and the bounds of the paper's theory hold for trained classifiers."""

import math
from collections import defaultdict
from collections.abc import Sequence

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.cells import Cell, Row, Table, cell
from gradalign_jax.report.groups import grouped
from gradalign_jax.report.results import Classifier, as_measured_by, measurement, measurements
from gradalign_jax.report.tables_classifiers import CENSORED

_COLUMNS = {
    "condition": "{c*, m} = {y, c̃} %",
    "lemma_1": "|ρ̃| / distance",
    "lower_bound": "inf ‖Δx‖₂ ᾱ_Δx / 2",
    "pgd_l2": "ε50% PGD L2",
    "upper_bound": "sup ‖Δx‖₂ ᾱ_Δx / 2",
    "holds": "between",
}
_LEMMA_1 = {"lemma_1": "distance by Carlini and Wagner", "lemma_1_pgd": "distance by PGD L2"}
_LEGEND = (
    "Mean ± sample standard deviation over seeds (number of seeds). {c*, m} = {y, c̃}: share of test images that meet "
    "the condition of Theorem 1; all do in binary tasks. |ρ̃| / distance: Lemma 1's linear approximation of the "
    "robustness over the distance that an attack measured, median over correctly classified images; 1 where the "
    "classifier is linear up to its boundary and the attack finds the closest point. The attack is that of Carlini and "
    "Wagner if it was made, otherwise PGD L2, whose distances are ε of its grid. inf and sup ‖Δx‖₂ ᾱ_Δx / 2: "
    "Theorem 2's bounds of the mean robustness; the wider they are apart, the less it says. ε50% PGD L2: the measured "
    "robustness, which Theorem 2 expects between them. Between: in how many classifiers it is, to within the two ε of "
    "the grid around ε50%, where that is known; where it is not between, an assumption of Theorem 2 fails, or the "
    f"median differs from the mean. {CENSORED}"
)


def theory(classifiers: Sequence[Classifier]) -> Table:
    """Build the table of Theorem 1's condition, Lemma 1's approximation and Theorem 2's bounds."""
    by_row = defaultdict(list)
    for classifier in classifiers:
        if classifier.has_table_2_epsilon and (member := _measured(classifier)):
            by_row[classifier.run.dataset, classifier.method].append(member)
    rows = []
    for key in [*(key for key in paper.TABLE_2 if key in by_row), *sorted(by_row.keys() - paper.TABLE_2.keys())]:
        dataset, method = key
        label = f"{DATASET_NAMES.get(dataset, dataset)} · {METHOD_NAMES[method]}"
        for name in (*_LEMMA_1, None):
            for group in grouped(member for member in by_row[key] if _distance(member) == name):
                note = "; ".join(filter(None, (_LEMMA_1.get(name), group.note)))
                rows.append(Row(key, label, note, _cells(group.members, name)))
    return Table(
        "theory", "Theory · Assumptions and bounds", ("dataset", "method"), tuple(_COLUMNS),
        tuple(_COLUMNS.values()), tuple(rows), _LEGEND,
    )  # fmt: skip


def _measured(classifier: Classifier) -> Classifier | None:
    """Return a classifier with the measurement that has most of the theory; None if none has any."""

    def known(source) -> int:
        return sum(value is not None for value in (source.result.get("theory") or {}).values())

    best = max(measurements(classifier), key=known)
    return as_measured_by(classifier, best) if known(best) else None


def _distance(member: Classifier) -> str | None:
    """Return which of Lemma 1's ratios a classifier has, Carlini and Wagner's before PGD's."""
    return next((name for name in _LEMMA_1 if measurement(member)["theory"].get(name) is not None), None)


def _cells(members: Sequence[Classifier], lemma_1: str | None) -> tuple[Cell, ...]:
    found = [measurement(member)["theory"] for member in members]
    censored = any(member.is_censored("pgd_l2") for member in members)
    conditions = [entry.get("condition") for entry in found]
    return (
        cell([None if share is None else 100 * share for share in conditions], None),
        cell([entry.get(lemma_1) for entry in found], None),
        cell([entry.get("lower_bound") for entry in found], None),
        cell([member.values["pgd_l2"] for member in members], None, censored),
        cell([entry.get("upper_bound") for entry in found], None),
        _holding([_is_between(member) for member in members]),
    )


def _is_between(member: Classifier) -> bool | None:
    """Return whether ε50% is between Theorem 2's bounds, to within the grid; None if that is not known."""
    entry, half = measurement(member)["theory"], member.values["pgd_l2"]
    lower, upper = entry.get("lower_bound"), entry.get("upper_bound")
    if None in (lower, upper, half):
        return None
    grid = (member.curves.get("pgd_l2") or {}).get("epsilons") or [half]
    below = max((epsilon for epsilon in grid if epsilon <= half), default=-math.inf)
    above = min((epsilon for epsilon in grid if epsilon >= half), default=math.inf)
    if member.is_censored("pgd_l2"):
        return None if half <= upper else False
    return below <= upper and above >= lower


def _holding(between: Sequence[bool | None]) -> Cell:
    known = tuple(float(value) for value in between if value is not None)
    return Cell(known, text=f"{sum(known):.0f} of {len(known)}") if known else Cell()
