"""Table of robustness under suites of attacks, beside the paper's PGD."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.cells import Cell, Row, Table, cell
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.suites import NAMES, Settings, curves, suite_groups
from gradalign_jax.report.tables_classifiers import CENSORED

_ATTACKS = {"apgd_ce": "APGD-CE %", "apgd_t": "APGD-T %", "fab_t": "FAB-T %", "square": "Square %"}
_COLUMNS = {
    **{"clean": "clean error %", "epsilon": "ε", "pgd": "PGD %", **_ATTACKS, "worst": "worst case %"},
    **{"half_pgd": "ε50% PGD", "half_worst": "ε50% worst case", "lower": "lower by %"},
    **{"gradients": "gradients per image", "seconds": "seconds"},
}
_NORMS = {"linf": "L∞", "l2": "L2"}
_LEGEND = (
    "Mean ± sample standard deviation over seeds (number of seeds). Percentages are error, on the same test images in "
    "all columns, at the ε of the grid that is nearest to ε50% under PGD of the same norm (mean over seeds), where "
    "about half of the images are left and attacks differ most; the ε of PGD training is on few grids. PGD is the "
    "paper's attack, and not part of a suite. Each attack of a suite gets only the images that those before it "
    "left, so that its error includes theirs, and the last is the worst case. Lower by: how much PGD overestimates "
    "ε50%, 1 − worst case / PGD; negative where PGD is the stronger one. Gradients and seconds are of all attacks at "
    f"all ε. – : the suite does not have the attack. {CENSORED}"
)


def robustness_by_suite(classifiers: Sequence[Classifier]) -> Table:
    """Build the table of errors by attack, and of ε50% under PGD beside that of the worst case."""
    keys = {(c.run.dataset, c.method) for c in classifiers}
    rows = []
    for dataset, method in [*(key for key in paper.TABLE_2 if key in keys), *sorted(keys - paper.TABLE_2.keys())]:
        for settings, group in suite_groups(classifiers, dataset, method):
            suite = f"{NAMES.get(settings.name, settings.name)} {_NORMS[settings.norm]}"
            label = f"{DATASET_NAMES.get(dataset, dataset)} · {METHOD_NAMES[method]} · {suite}"
            note = "; ".join(filter(None, (settings.note, group.note)))
            key = (dataset, method, settings.name, settings.norm)
            rows.append(Row(key, label, note, _cells(group.members, settings)))
    return Table(
        "suites", "Suites · Robustness by attack", ("dataset", "method", "suite", "norm"), tuple(_COLUMNS),
        tuple(_COLUMNS.values()), tuple(rows), _LEGEND,
    )  # fmt: skip


def _cells(members: Sequence[Classifier], settings: Settings) -> tuple[Cell, ...]:
    pgd = f"pgd_{settings.norm}"
    found = [curves(member) for member in members]
    by_pgd = [member.values[pgd] for member in members]
    by_worst = [curve["worst"].get("epsilon_half") for curve in found]
    epsilon = _nearest(settings.epsilons, by_pgd) or _nearest(settings.epsilons, by_worst)
    pgd_censored = any(member.is_censored(pgd) for member in members)
    worst_censored = any(curve["worst"].get("censored") for curve in found)

    def errors(name: str) -> Cell:
        made = any(name in curve for curve in found)
        return cell([_error(curve.get(name), epsilon) for curve in found], None) if made else Cell(text="–")

    lower = [100 * (1 - w / p) if p and w is not None else None for p, w in zip(by_pgd, by_worst, strict=True)]
    spent = [[_total(curve, name) for curve in found] for name in ("gradients", "seconds")]
    return (
        cell([_error(curve["worst"], 0) for curve in found], None),
        Cell() if epsilon is None else Cell((epsilon,), text=f"{epsilon:g}"),
        cell([_error(member.curves.get(pgd), epsilon) for member in members], None),
        *(errors(name) for name in (*_ATTACKS, "worst")),
        cell(by_pgd, None, pgd_censored),
        cell(by_worst, None, worst_censored),
        cell(lower, None, pgd_censored or worst_censored),
        *(cell(values, None) for values in spent),
    )


def _nearest(grid: Sequence[float], halves: Sequence[float | None]) -> float | None:
    """Return the positive ε of a grid that is nearest to the mean of ε50%; None if no ε50% is known."""
    known = [half for half in halves if half is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return min((epsilon for epsilon in grid if epsilon > 0), key=lambda epsilon: abs(epsilon - mean))


def _error(curve: Mapping[str, Any] | None, epsilon: float | None) -> float | None:
    """Return the error in percent at an ε of a curve, None where it has no such ε."""
    if curve is None or epsilon not in curve["epsilons"]:
        return None
    return 100 * curve["errors"][curve["epsilons"].index(epsilon)]


def _total(of_attacks: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """Return the sum of a number over the attacks of a suite, None where no attack has it."""
    present = [curve[name] for curve in of_attacks.values() if curve.get(name) is not None]
    return sum(present) if present else None
