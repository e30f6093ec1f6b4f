"""Tables 1, 2, 3, S1 and S2: every cell holds what was measured, what the paper prints, and how far they are apart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gradalign_jax import paper
from gradalign_jax.report import statistics
from gradalign_jax.report.departures import departures
from gradalign_jax.report.groups import Group, alike, correlation, grouped, pgd_series
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run

NAMES = {
    "spheres": "Spheres",
    "squares": "Squares",
    "squares32": "Squares32",
    "mnist35": "MNIST-3/5",
    "copd": "COPD",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}
METHODS = {"baseline": "baseline", "align": "L_α", "pgd": "PGD"}


class Cell(NamedTuple):
    """Measured values, one a seed; the printed number; their distance."""

    values: tuple[float, ...] = ()
    printed: paper.Number | None = None
    z: float | None = None
    n: int | None = None  # where it is not the number of values
    censored: bool = False  # an ε50% that lies beyond an attack's largest ε, in one seed or more

    def ours(self) -> str:
        """Mean ± deviation (number) with the paper's digits, as 0.659 ± 0.028 (5), † if censored; or missing."""
        mean, sd = statistics.mean_sd(self.values)
        if mean is None:
            return "missing"
        text = self._digits(mean) + ("" if sd is None else f" ± {self._digits(sd)}")
        return f"{text}{'†' * self.censored} ({self.n or len(self.values)})".replace("-", "−")

    def _digits(self, value: float) -> str:
        if self.printed is None:
            return f"{value:.3g}"
        mean, _, sd = self.printed.text.partition("±")
        text = f"{value:.{max(len(part.partition('.')[2]) for part in (mean, sd))}f}"
        return text if value == 0 or float(text) else f"{value:.1g}"  # short, for the table's width

    def theirs(self) -> str:
        """The number as the paper prints it, or a dash."""
        return self.printed.text.replace("±", " ± ") if self.printed else "–"

    def distance(self) -> str:
        """z with its sign, or a dash."""
        return "–" if self.z is None else f"{self.z:+.{int(abs(self.z) < 10)}f}".replace("-", "−")


class Row(NamedTuple):
    """One line: its key (dataset, method, ...), what else tells it from its neighbours, and its cells."""

    key: tuple[str, ...]
    label: str
    note: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table of the paper."""

    name: str
    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    legend: str


LEGEND = (
    "Ours: mean ± sample deviation over seeds (their number). Paper: as printed, 5 runs. "
    "z = (ours − paper) / √(s²(1/n + 1/5) + h²/3), with s the deviation pooled over both, or the only one there is, "
    "where a printed 0 counts as half a unit of its last digit, and h half a unit of the last digit of the paper's "
    "mean; |z| ≤ 2 is agreement as far as the seeds can tell. "
    "† : in one seed or more the largest ε leaves the error at 51 % or less, so that ε50% lies higher than shown. "
    "– : not defined, or nothing to compare with. The test images' own sampling is not part of z."
)


def cell(values: Iterable[float | None], printed: paper.Number | None, censored: bool = False) -> Cell:
    """A cell of the values that were measured."""
    present = tuple(value for value in values if value is not None)
    return Cell(present, printed, statistics.z_score(present, printed), censored=censored)


def _censored(members: Iterable[Classifier], attack: str) -> bool:
    """Whether an ε50% of theirs is; False for what is no attack."""
    curves = [m.curves.get(attack) or {} for m in members if m.values.get(attack) is not None]
    return any(curve.get("censored") for curve in curves)


def _of_classifiers(found: Sequence[Classifier], keys: Iterable[tuple[str, str]], columns, printed) -> tuple[Row, ...]:
    rows = []
    for dataset, method in keys:
        mine = [c for c in found if (c.run.dataset, c.method) == (dataset, method) and c.as_in_table_2]
        numbers = printed.get((dataset, method), {})
        label = f"{NAMES.get(dataset, dataset)} · {METHODS[method]}"
        for group in grouped(mine) or [Group((), "")]:
            of = group.members
            cells = tuple(cell([m.values[c] for m in of], numbers.get(c), _censored(of, c)) for c in columns)
            rows.append(Row((dataset, method), label, group.note, cells))
    return tuple(rows)


def table_2(found: Sequence[Classifier]) -> Table:
    """Accuracy, ε50% under three attacks and alignments after the three methods of training."""
    return Table(
        "table2",
        "Table 2 · Accuracy, robustness and alignment",
        ("dataset", "method"),
        paper.COLUMNS,
        ("accuracy %", "ε50% PGD L∞", "ε50% PGD L2", "ε50% Square L∞", "ᾱ_Δx", "ᾱ_x"),
        _of_classifiers(found, _with_others(found, paper.TABLE_2), paper.COLUMNS, paper.TABLE_2),
        f"{LEGEND} ε in units of [−1, 1].",
    )


def _with_others(found: Sequence[Classifier], keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The paper's rows, then measured ones that it does not have (Squares32)."""
    others = sorted({(c.run.dataset, c.method) for c in found} - set(keys))
    return [*keys, *others]


def table_s2(found: Sequence[Classifier]) -> Table:
    """ᾱ_x for four functions whose gradient is taken."""
    return Table(
        "tableS2",
        "Table S2 · ᾱ_x by the function whose gradient is taken",
        ("dataset", "method"),
        paper.S2_COLUMNS,
        ("Ψ_c̃ − Ψ_y", "Ψ_c* − Ψ_m(x)", "Ψ_y", "Ψ_m(x)"),
        _of_classifiers(found, paper.TABLE_S2, paper.S2_COLUMNS, paper.TABLE_S2),
        "As in Table 2, but the paper gives no deviations here: z rests on ours alone, and needs two seeds.",
    )


def table_3(found: Sequence[Classifier]) -> Table:
    """Pearson's r between alignment and robustness over PGD training at several ε."""
    rows = []
    for (dataset,), numbers in paper.TABLE_3.items():
        series = pgd_series(found, dataset)
        cells = []
        for alpha in paper.T3_COLUMNS:
            r, n = correlation(series, alpha)
            z = statistics.z_of_correlations(r, n, numbers[alpha].value, paper.TABLE_3_RUNS)
            cells.append(Cell(() if r is None else (r,), numbers[alpha], z, n))
        epsilons = sorted({c.epsilon for c in series})
        note = f"ε {', '.join(f'{e:g}' for e in epsilons)}" if epsilons else ""
        if series:
            note = "; ".join([note, *departures(series[0].run)])
        rows.append(Row((dataset,), NAMES[dataset], note, tuple(cells)))
    legend = (
        "Pearson's r (over how many classifiers) of ε50% PGD L∞ with the alignment, PGD training at three or more ε. "
        "z after Fisher: (artanh r − artanh r_paper) / √(1/(n−3) + 1/27), the paper having 30 classifiers or more."
    )
    return Table(
        "table3", "Table 3 · Correlation of alignment and robustness", ("dataset",), paper.T3_COLUMNS,
        ("ᾱ_Δx", "ᾱ_x"), tuple(rows), legend,
    )  # fmt: skip


def _told(runs: Sequence[Run], *words: str) -> str:
    return "; ".join([*words, *(departures(runs[0]) if runs else ())])


def _by_class(run: Run, name: str) -> Mapping[str, float]:
    found = run.result.get("similarity_by_class") if name == "similarity" else (run.result.get("norms") or {}).get(name)
    return found or {}


def table_1(runs: Sequence[Run]) -> Table:
    """Norms on Spheres of the direct method's estimates; means over the test split where the paper shows one sample."""
    mine = alike(run for run in runs if run.task == "vrgan" and run.dataset == "spheres")
    rows = []
    for (label,), numbers in paper.TABLE_1.items():
        cells = []
        for name in paper.T1_COLUMNS:
            by_class = [_by_class(run, name) for run in mine]
            values = tuple(values[label] for values in by_class if values.get(label) is not None)
            cells.append(Cell(values, numbers.get(name)))
        rows.append(Row((label,), f"class {'−1' if label == '0' else '1'}", _told(mine), tuple(cells)))
    return Table(
        "table1",
        "Table 1 · Estimates on Spheres by the direct method",
        ("class",),
        paper.T1_COLUMNS,
        ("‖x‖₂", "‖Δ̂x‖₂", "‖x̂′‖₂", "‖x′‖₂", "sim(Δx, Δ̂x)"),
        tuple(rows),
        "Ours: the test split's mean ± deviation over seeds (their number). Paper: one random sample a class, so that "
        "there is no z.",
    )


def similarities(runs: Sequence[Run]) -> Table:
    """How well estimates point where the exact Δx does (section 3.2)."""
    rows = []
    for dataset, printed in paper.SECTION_3_2.items():
        task = "project" if dataset == "squares32" else "vrgan"
        mine = alike(run for run in runs if (run.task, run.dataset) == (task, dataset))
        how = "conditional GAN, projected" if task == "project" else "VR-GAN"
        found = [run.result.get("similarity") for run in mine]
        values = [value.get("mean") if isinstance(value, Mapping) else value for value in found]
        rows.append(Row((dataset,), NAMES[dataset], _told(mine, how), (cell(values, printed),)))
    return Table(
        "section3.2", "Section 3.2 · Alignment of estimates with the exact Δx", ("dataset",), ("similarity",),
        ("sim(Δx, Δ̂x)",), tuple(rows), "As in Table 2.",
    )  # fmt: skip


def ratios(found: Sequence[Classifier]) -> Table:
    """ε50% L2 over ᾱ_Δx on Spheres, which Theorem 2 puts at .15."""
    rows = []
    for method, printed in zip(paper.METHODS, (".150", ".150", ".148"), strict=True):
        mine = [c for c in found if (c.run.dataset, c.method) == ("spheres", method) and c.as_in_table_2]
        for group in grouped(mine) or [Group((), "")]:
            pairs = [(m.values["pgd_l2"], m.values["alpha_delta_x"]) for m in group.members]
            values = [half / alpha for half, alpha in pairs if half is not None and alpha]
            ratio = cell(values, paper.number(printed), _censored(group.members, "pgd_l2"))
            rows.append(Row((method,), METHODS[method], group.note, (ratio,)))
    return Table(
        "theorem2", "Theorem 2 on Spheres · ε50% L2 / ᾱ_Δx", ("method",), ("ratio",), ("theory: 0.15",), tuple(rows),
        "Paper: the ratio of its Table 2's means. As in Table 2 otherwise, z resting on our deviation.",
    )  # fmt: skip


def _timed(runs: Sequence[Run], column: str) -> list[Run]:
    """The runs whose hours stand in a column of Table S1: those that did most, method by method."""
    if column == "generator":
        return alike(run for run in runs if run.task in ("vrgan", "gan"))
    if column in METHODS:
        return alike(run for run in runs if (run.task, run.result.get("method")) == ("classifier", column))
    found = [run for run in runs if run.task == "evaluate" and run.setting("evaluate.square_queries")]
    found = [run for run in found if not run.setting("evaluate.cw_images")] or found
    return [run for method in METHODS for run in alike(run for run in found if run.result.get("method") == method)]


def table_s1(runs: Sequence[Run]) -> Table:
    """Hours of a run."""
    rows = []
    for (dataset,), numbers in paper.HOURS.items():
        mine = [run for run in runs if run.dataset == dataset and run.result.get("seconds") is not None]
        hours = [tuple(run.result["seconds"] / 3600 for run in _timed(mine, column)) for column in paper.S1_COLUMNS]
        cells = [Cell(each, numbers.get(column)) for column, each in zip(paper.S1_COLUMNS, hours, strict=True)]
        rows.append(Row((dataset,), NAMES[dataset], "", tuple(cells)))
    return Table(
        "tableS1", "Table S1 · Hours of a run", ("dataset",), paper.S1_COLUMNS,
        ("baseline", "GAN", "L_α", "PGD", "Square Attack"), tuple(rows),
        "Ours: hours on the devices listed below, of the longest runs, with their whole test; not comparable where "
        "lengths differ. Square Attack: an evaluation with PGD, and without Carlini and Wagner's attack where there is "
        "one. Paper: averages on a Titan V, Titan RTX or V100.",
    )  # fmt: skip


def all_tables(runs: Sequence[Run], found: Sequence[Classifier]) -> list[Table]:
    """Every table, in the paper's order."""
    first = [table_2(found), ratios(found), table_3(found), table_1(runs), similarities(runs)]
    return [*first, table_s2(found), table_s1(runs)]
