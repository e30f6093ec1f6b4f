"""Tables of classifiers: 2, 3 and S2, Theorem 2 on Spheres, and accuracy by class."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES, Number
from gradalign_jax.report import statistics
from gradalign_jax.report.arrays import read_images_table
from gradalign_jax.report.cells import Cell, Row, Table, cell
from gradalign_jax.report.differences import differences
from gradalign_jax.report.groups import Group, grouped, longest_trained, pgd_series
from gradalign_jax.report.results import Classifier, measurements
from gradalign_jax.report.runs import Run

CENSORED = "† : in one run or more the largest ε leaves the error at 51 % or less, so that ε50% is higher than shown."
_LEGEND = (
    "Ours: mean ± sample standard deviation over seeds (number of seeds). Paper: as printed, 5 runs. z is the distance "
    "of the means in a t-test, as the normal quantile of the same tail probability: if our runs and the paper's follow "
    "one law, |z| > 2 happens in 4.6 % of cells. The standard deviation is pooled over both, or the only one there is; "
    "a printed deviation of 0 counts as half a unit of its last digit, and the rounding of the paper's mean is "
    f"included. {CENSORED} – : not defined, or nothing to compare with. z ignores that test images are a sample."
)


def _rows(
    classifiers: Sequence[Classifier],
    keys: Iterable[tuple[str, str]],
    columns: Sequence[str],
    printed: Mapping[tuple[str, str], Mapping[str, Number]],
) -> tuple[Row, ...]:
    rows = []
    for dataset, method in keys:
        row = [c for c in classifiers if (c.run.dataset, c.method) == (dataset, method) and c.has_table_2_epsilon]
        numbers = printed.get((dataset, method), {})
        label = f"{DATASET_NAMES.get(dataset, dataset)} · {METHOD_NAMES[method]}"
        for group in grouped(row) or [Group()]:
            cells = tuple(
                cell([m.values[c] for m in group.members], numbers.get(c), any(m.is_censored(c) for m in group.members))
                for c in columns
            )
            rows.append(Row((dataset, method), label, group.note, cells))
    return tuple(rows)


def table_2(classifiers: Sequence[Classifier]) -> Table:
    """Build Table 2: accuracy, ε50% under three attacks, and alignments after the three methods of training."""
    others = sorted({(c.run.dataset, c.method) for c in classifiers} - set(paper.TABLE_2))
    return Table(
        "table2",
        "Table 2 · Accuracy, robustness and alignment",
        ("dataset", "method"),
        paper.COLUMNS,
        tuple(paper.QUANTITY_NAMES.values()),
        _rows(classifiers, [*paper.TABLE_2, *others], paper.COLUMNS, paper.TABLE_2),
        f"{_LEGEND} ε in units of [−1, 1].",
    )


def table_s2(classifiers: Sequence[Classifier]) -> Table:
    """Build Table S2: ᾱ_x for four functions whose gradient is compared with x."""
    return Table(
        "tableS2",
        "Table S2 · ᾱ_x by the function whose gradient is compared with x",
        ("dataset", "method"),
        paper.S2_COLUMNS,
        tuple(paper.GRADIENT_NAMES.values()),
        _rows(classifiers, paper.TABLE_S2, paper.S2_COLUMNS, paper.TABLE_S2),
        "As in Table 2, but the paper gives no standard deviations here: z uses ours alone and needs two seeds.",
    )


def correlation(series: Sequence[Classifier], alpha: str, printed: Number | None = None) -> Cell:
    """Return Pearson's r of an alignment with ε50% under PGD L∞ over a series; missing below three ε."""
    members = [c for c in series if c.values[alpha] is not None]
    a, b = [c.values[alpha] for c in members], [c.values["pgd_linf"] for c in members]
    epsilons = [c.epsilon for c in members]
    r = statistics.pearson(a, b) if len(set(epsilons)) > 2 else None
    if r is None:
        return Cell((), printed, n=len(members))
    z = statistics.z_of_correlation(a, b, epsilons, printed.value) if printed else None
    return Cell((r,), printed, z, len(members), censored=any(c.is_censored("pgd_linf") for c in members))


def table_3(classifiers: Sequence[Classifier]) -> Table:
    """Build Table 3: Pearson's r between alignment and robustness over PGD training at several ε."""
    rows = []
    for (dataset,), numbers in paper.TABLE_3.items():
        series = pgd_series(classifiers, dataset)
        epsilons = sorted({c.epsilon for c in series if c.epsilon is not None})
        notes = [f"ε {', '.join(f'{e:g}' for e in epsilons)}", *differences(series[0].run)] if series else []
        cells = tuple(correlation(series, alpha, numbers[alpha]) for alpha in paper.T3_COLUMNS)
        rows.append(Row((dataset,), DATASET_NAMES[dataset], "; ".join(notes), cells))
    legend = (
        "Pearson's r of ε50% PGD L∞ with the alignment (number of classifiers), PGD training at three or more ε. z: "
        "difference of artanh r over its standard error by a jackknife that leaves out one ε at a time, because "
        "classifiers of one ε are not independent; needs four ε. The paper prints neither its ε nor an uncertainty, so "
        f"z assumes that its r is as uncertain as ours, over the same range of ε. {CENSORED}"
    )
    return Table(
        "table3", "Table 3 · Correlation of alignment and robustness", ("dataset",), paper.T3_COLUMNS,
        tuple(paper.QUANTITY_NAMES[name] for name in paper.T3_COLUMNS), tuple(rows), legend,
    )  # fmt: skip


def theorem_2(classifiers: Sequence[Classifier]) -> Table:
    """Build the table of ε50% L2 / ᾱ_Δx on Spheres, which Theorem 2 puts at 0.15."""
    rows = []
    for method, printed in zip(paper.METHODS, (".150", ".150", ".148"), strict=True):
        row = [c for c in classifiers if (c.run.dataset, c.method) == ("spheres", method) and c.has_table_2_epsilon]
        for group in grouped(row) or [Group()]:
            pairs = [(m.values["pgd_l2"], m.values["alpha_delta_x"]) for m in group.members]
            values = [half / alpha for half, alpha in pairs if half is not None and alpha]
            censored = any(member.is_censored("pgd_l2") for member in group.members)
            rows.append(
                Row((method,), METHOD_NAMES[method], group.note, (cell(values, paper.number(printed), censored),))
            )
    return Table(
        "theorem2", "Theorem 2 on Spheres · ε50% L2 / ᾱ_Δx", ("method",), ("ratio",), ("theory: 0.15",), tuple(rows),
        f"Paper: ratio of the means in its Table 2. z uses our deviation alone and needs two seeds. {CENSORED}",
    )  # fmt: skip


_LEFT = {"pgd_linf": "left by PGD L∞ %", "square_linf": "left by Square L∞ %"}


def _left_by_class(images: Mapping[str, np.ndarray], curves: Mapping, label: int) -> dict[str, float | None]:
    """Return the accuracy of a class in percent, without an attack and at the largest ε of each attack."""
    own = images["ground_truth_class"] == label
    found = {"accuracy": 100 * float(np.mean(images["predicted_class"][own] == label))}
    for attack in _LEFT:
        smallest = images.get(f"smallest_epsilon_{attack}")
        attacked = (curves.get(attack) or {}).get("images") or 0
        rows = own & (np.arange(len(own)) < attacked)  # an attack may have seen the first images alone
        present = smallest is not None and rows.any()
        found[attack] = 100 * float(np.mean(np.isnan(smallest[rows]))) if present else None
    return found


def _accuracy_by_class(run: Run) -> dict[int, dict[str, float | None]]:
    """Return the numbers of each class: from images.csv, but the accuracy from the result if it is there."""
    found, images = {}, read_images_table(run)
    if images is not None:
        labels = [int(label) for label in np.unique(images["ground_truth_class"]) if 0 <= label < 1000]
        found = {label: _left_by_class(images, run.result.get("curves") or {}, label) for label in labels}
    for label, accuracy in (run.result.get("accuracy_by_class") or {}).items():
        if accuracy is not None:
            found.setdefault(int(label), dict.fromkeys(_LEFT))["accuracy"] = 100 * accuracy
    return found


def accuracy_by_class(classifiers: Sequence[Classifier]) -> Table:
    """Build the table of accuracy by class, from the most complete measurement of the longest-trained classifiers."""

    def most_complete(classifier: Classifier) -> dict[int, dict[str, float | None]]:
        found = [_accuracy_by_class(run) for run in reversed(measurements(classifier))]  # evaluations first
        return max(found, key=lambda table: sum(v is not None for row in table.values() for v in row.values()))

    measured: dict[tuple[str, str], list[dict[int, dict[str, float | None]]]] = {}
    for dataset, method in paper.TABLE_2:
        found = [most_complete(member) for member in longest_trained(classifiers, dataset, method, most_complete)]
        if any(found):
            measured[dataset, method] = [by_class for by_class in found if by_class]
    rows = []
    for (dataset, method), members in measured.items():
        for label in sorted(set.union(*map(set, members))):
            values = [[m[label].get(c) for m in members if label in m] for c in ("accuracy", *_LEFT)]
            name = paper.class_name(dataset, label)
            text = f"{DATASET_NAMES[dataset]} · {METHOD_NAMES[method]} · class {name}"
            rows.append(Row((dataset, method, name), text, "", tuple(cell(v, None) for v in values)))
    return Table(
        "accuracy_by_class",
        "Section A.7 · Accuracy by class",
        ("dataset", "method", "class"),
        ("accuracy", *_LEFT),
        (paper.QUANTITY_NAMES["accuracy"], *_LEFT.values()),
        tuple(rows),
        "Accuracy on the test images of each class, without an attack and over all ε of each attack. Where Square "
        "Attack leaves less than PGD in a class, gradients are obfuscated there, as the paper remarks of one class of "
        "Squares after training with L_α. Attacks by class are from images.csv of evaluations. "
        "The paper prints no numbers.",
    )
