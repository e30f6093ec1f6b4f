"""Tables as Markdown, CSV and LaTeX."""

import csv
import io

from gradalign_jax.report import statistics
from gradalign_jax.report.cells import Cell, Table
from gradalign_jax.report.text import as_latex, as_markdown, printable


def _parts(table: Table) -> tuple[list[str], list[list[list[str]]]]:
    """Return the names and texts of the parts of all cells: ours, paper and z; only ours if the paper has no number."""
    parts = {"ours": Cell.measured_text, "paper": Cell.paper_text, "z": Cell.z_text}
    if not any(cell.printed for row in table.rows for cell in row.cells):
        parts = {"ours": Cell.measured_text}
    return list(parts), [[[text(cell) for text in parts.values()] for cell in row.cells] for row in table.rows]


def markdown(table: Table) -> str:
    """Return a pipe table; cells read "ours | paper | z", or "ours" where the paper has none of the numbers."""
    names, texts = _parts(table)
    headings = [as_markdown(heading) for heading in table.headings]
    lines = [f"### {as_markdown(table.title)}", "", f"| | {' | '.join(headings)} |", "|---" * (1 + len(headings)) + "|"]
    for row, parts in zip(table.rows, texts, strict=True):
        cells = [" \\| ".join(map(as_markdown, cell)) for cell in parts]
        label = as_markdown(f"{row.label} ({row.note})" if row.note else row.label)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    cells_are = "Cells: " + " \\| ".join(names) + ". " if len(names) > 1 else ""
    return "\n".join([*lines, "", cells_are + as_markdown(table.legend), ""])


def as_csv(table: Table) -> str:
    """Return one line for each cell, numbers unrounded, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.keys, "note", "quantity", "ours", "ours_sd", "n", "censored", "paper", "paper_sd", "z"])
    for row in table.rows:
        for name, cell in zip(table.columns, row.cells, strict=True):
            mean, sd = statistics.mean_sd(cell.values)
            count = (cell.n or len(cell.values)) if cell.values else 0
            printed = (cell.printed.value, cell.printed.sd) if cell.printed else (None, None)
            numbers = ["" if v is None else v for v in (mean, sd, count, int(cell.censored), *printed, cell.z)]
            writer.writerow([*map(printable, row.key), printable(row.note), name, *numbers])
    return text.getvalue()


def latex(table: Table) -> str:
    """Return a tabular (package booktabs), the parts of a cell below one another, then notes and legend."""
    names, texts = _parts(table)
    lines = [
        f"% {printable(table.title)}. Needs \\usepackage{{booktabs}}. Cells: {', '.join(names)}.",
        f"\\begin{{tabular}}{{l{'c' * len(table.headings)}}}",
        "\\toprule",
        " & ".join(["", *map(as_latex, table.headings)]) + r" \\",
        "\\midrule",
    ]
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    for row, parts in zip(table.rows, texts, strict=True):
        cells = [r"\shortstack{" + r" \\ ".join(map(as_latex, cell)) + "}" for cell in parts]
        mark = f"\\textsuperscript{{{notes.index(row.note) + 1}}}" if row.note else ""
        lines.append(" & ".join([as_latex(row.label) + mark, *cells]) + r" \\[1ex]")
    lines += ["\\bottomrule", "\\end{tabular}", "\\par\\medskip{\\footnotesize"]
    lines += [f"\\textsuperscript{{{i}}} {as_latex(note)}.\\par" for i, note in enumerate(notes, 1)]
    return "\n".join([*lines, f"{as_latex(table.legend)}\\par}}", ""])
