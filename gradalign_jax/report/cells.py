"""Tables of measured numbers beside printed ones: cells, rows and tables, independent of a format."""

from collections.abc import Iterable
from typing import NamedTuple

from gradalign_jax import paper
from gradalign_jax.report import statistics


class Cell(NamedTuple):
    """Measured values beside a printed number.

    Attributes:
        values: Measured values, one for each seed.
        printed: The paper's number.
        z: Distance of the values' mean from the paper's number.
        n: Number of runs, where it is not the number of values.
        censored: Whether an ε50% lies beyond an attack's largest ε, in one seed or more.
        text: What to show in place of the values' mean, for settings.
    """

    values: tuple[float, ...] = ()
    printed: paper.Number | None = None
    z: float | None = None
    n: int | None = None
    censored: bool = False
    text: str | None = None

    def measured_text(self) -> str:
        """Return mean ± deviation (n) with the paper's digits, as "0.659 ± 0.028 (5)"; † if censored; or "missing"."""
        if self.text is not None:
            return self.text
        mean, sd = statistics.mean_sd(self.values)
        if mean is None:
            return "missing"
        text = self._rounded(mean) + ("" if sd is None else f" ± {self._rounded(sd)}")
        return f"{text}{'†' * self.censored} ({self.n or len(self.values)})".replace("-", "−")

    def _rounded(self, value: float) -> str:
        if self.printed is None:
            return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"
        mean, _, sd = self.printed.text.partition("±")
        text = f"{value:.{max(len(part.partition('.')[2]) for part in (mean, sd))}f}"
        return text if value == 0 or float(text) else f"{value:.1g}"  # short, for the table's width

    def paper_text(self) -> str:
        """Return the number as the paper prints it, or a dash."""
        return self.printed.text.replace("±", " ± ") if self.printed else "–"

    def z_text(self) -> str:
        """Return z with its sign, or a dash."""
        return "–" if self.z is None else f"{self.z:+.{int(abs(self.z) < 10)}f}".replace("-", "−")

    @property
    def is_missing(self) -> bool:
        """Whether nothing was measured."""
        return not self.values and self.text is None


class Row(NamedTuple):
    """A row: its key (dataset, method, ...), its label, a note that distinguishes it, and its cells."""

    key: tuple[str, ...]
    label: str
    note: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table: names of the rows' keys and of the columns, the columns' headings, rows, and a legend."""

    name: str
    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    legend: str


def cell(values: Iterable[float | None], printed: paper.Number | None, censored: bool = False) -> Cell:
    """Return a cell with the values that are not None, and their z."""
    present = tuple(value for value in values if value is not None)
    return Cell(present, printed, statistics.z_score(present, printed), censored=censored)
