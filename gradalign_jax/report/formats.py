"""A table as Markdown, CSV and LaTeX."""

import csv
import io

from gradalign_jax.report import statistics
from gradalign_jax.report.tables import Cell, Table

_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$"},
    **{"±": r"$\pm$", "√": r"$\surd$", "²": "$^2$", "‖": r"$\|$", "₂": "$_2$", "′": r"$'$", "·": r"$\cdot$"},
    **{"∞": r"$_\infty$", "ε": r"$\varepsilon$", "η": r"$\eta$", "λ": r"$\lambda$", "Ψ": r"$\Psi$", "…": r"\dots{}"},
    **{"≤": r"$\le$", "×": r"$\times$", "†": r"$^\dagger$"},
}
_TEX_WORDS = {
    "ᾱ_Δx": r"$\overline{\alpha}_{\Delta x}$",
    "ᾱ_x": r"$\overline{\alpha}_{x}$",
    "L_α": r"$L_\alpha$",
    "Δ̂x": r"$\widehat{\Delta x}$",
    "x̂′": r"$\hat{x}'$",
    "Δx": r"$\Delta x$",
    "Ψ_c̃": r"$\Psi_{\tilde c}$",
    "Ψ_c*": r"$\Psi_{c^*}$",
    "Ψ_m(x)": r"$\Psi_{m(x)}$",
    "Ψ_y": r"$\Psi_{y}$",
}


def _joined(cell: Cell) -> list[str]:
    return [cell.ours(), cell.theirs(), cell.distance()]


def markdown(table: Table) -> str:
    """A pipe table; every cell reads "ours | paper | z"."""
    escaped = [heading.replace("|", "\\|") for heading in table.headings]
    lines = [f"### {table.title}", "", f"| | {' | '.join(escaped)} |", "|---" * (1 + len(escaped)) + "|"]
    for row in table.rows:
        cells = [" \\| ".join(_joined(cell)) for cell in row.cells]
        label = f"{row.label} ({row.note})" if row.note else row.label
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Cells: ours \\| paper \\| z. {table.legend}", ""])


def as_csv(table: Table) -> str:
    """One line a cell, numbers in full; empty where nothing is known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.keys, "note", "quantity", "ours", "ours_sd", "n", "censored", "paper", "paper_sd", "z"])
    for row in table.rows:
        for name, cell in zip(table.columns, row.cells, strict=True):
            mean, sd = statistics.mean_sd(cell.values)
            count = (cell.n or len(cell.values)) if cell.values else 0
            printed = (cell.printed.value, cell.printed.sd) if cell.printed else (None, None)
            numbers = ["" if v is None else v for v in (mean, sd, count, int(cell.censored), *printed, cell.z)]
            writer.writerow([*row.key, row.note, name, *numbers])
    return text.getvalue()


def tex(text: str) -> str:
    """Plain text with its mathematics in LaTeX."""
    placed = {}
    for i, (word, command) in enumerate(_TEX_WORDS.items()):
        mark = chr(0xE000 + i)
        text, placed[mark] = text.replace(word, mark), command
    return "".join(placed.get(c) or _TEX.get(c, c) for c in text)


def latex(table: Table) -> str:
    """A tabular (package booktabs), cells being stacks of ours, paper and z; rows' notes and the legend follow it."""
    lines = [
        f"% {table.title}. Needs \\usepackage{{booktabs}}. Cells: ours, paper, z.",
        f"\\begin{{tabular}}{{l{'c' * len(table.headings)}}}",
        "\\toprule",
        " & ".join(["", *map(tex, table.headings)]) + r" \\",
        "\\midrule",
    ]
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    for row in table.rows:
        cells = [r"\shortstack{" + r" \\ ".join(map(tex, _joined(cell))) + "}" for cell in row.cells]
        mark = f"\\textsuperscript{{{notes.index(row.note) + 1}}}" if row.note else ""
        lines.append(" & ".join([tex(row.label) + mark, *cells]) + r" \\[1ex]")
    lines += ["\\bottomrule", "\\end{tabular}", "\\par\\medskip{\\footnotesize"]
    lines += [f"\\textsuperscript{{{i}}} {tex(note)}.\\par" for i, note in enumerate(notes, 1)]
    return "\n".join([*lines, f"{tex(table.legend)}\\par}}", ""])
