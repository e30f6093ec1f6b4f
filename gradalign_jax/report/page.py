"""One HTML page with every table and figure, notes and provenance; it loads nothing from elsewhere."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.cells import Cell, Table
from gradalign_jax.report.differences import differences
from gradalign_jax.report.runs import Damaged, Run
from gradalign_jax.report.style import Figure
from gradalign_jax.report.text import as_html

STYLE = Path(__file__).with_name("page.css")
DPI = 144  # of the PNGs: 1.5 times CSS's 96, sharp on most screens
_NOTES = 4  # parts of a row's note that are shown before a click
_PATHS = 4  # runs that are listed with a warning


class Drawing(NamedTuple):
    """A figure and its two PNGs, for light and dark pages; None where nothing was measured."""

    figure: Figure
    light: bytes | None
    dark: bytes | None


def _cell(cell: Cell, has_z: bool) -> str:
    printed = f'<span class="paper">{as_html(cell.paper_text())}</span>' if cell.printed else ""
    if cell.is_missing:
        return f'<td class="missing"><span class="ours">missing</span>{printed}</td>'
    grade = "" if cell.z is None else (" near" if abs(cell.z) <= 2 else " off" if abs(cell.z) <= 4 else " far")
    z = f'<span class="z{grade}">{as_html(cell.z_text())}</span>' if has_z else ""
    ours = as_html(cell.measured_text())
    if cell.text is None:
        mean, _, n = cell.measured_text().rpartition(" (")
        ours = f"{as_html(mean)}<small> n={as_html(n[:-1])}</small>"
    return f'<td><span class="ours">{ours}</span>{printed}{z}</td>'


def _folded(note: str) -> str:
    """Return a note, the end of a long one hidden behind a click."""
    parts = note.split("; ")
    if len(parts) <= _NOTES:
        return as_html(note)
    shown, hidden = ("; ".join(some) for some in (parts[: _NOTES - 1], parts[_NOTES - 1 :]))
    more = f"and {len(parts) - _NOTES + 1} more"
    return f"{as_html(shown)} <details><summary>{more}</summary>{as_html(hidden)}</details>"


def _table(content: Table) -> str:
    """Return a table, rows without any measurement set small."""
    head = "".join(f"<th>{as_html(heading)}</th>" for heading in content.headings)
    has_z = any(cell.z is not None for row in content.rows for cell in row.cells)
    lines = []
    for row in content.rows:
        note = f"<small>{_folded(row.note)}</small>" if row.note else ""
        cells = "".join(_cell(cell, has_z) for cell in row.cells)
        empty = ' class="empty"' if all(cell.is_missing for cell in row.cells) else ""
        lines.append(f"<tr{empty}><th>{as_html(row.label)}{note}</th>{cells}</tr>")
    narrow = ' class="narrow"' if len(content.headings) < 3 else ""
    files = " · ".join(f'<a href="{content.name}.{kind}">{kind}</a>' for kind in ("csv", "md", "tex"))
    return (
        f'<section id="{content.name}"><h2>{as_html(content.title)}</h2><div class="scroll"><table{narrow}>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="legend">{as_html(content.legend)} <span class="files">Files: {files}</span></p></section>'
    )


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _figure(drawing: Drawing) -> str:
    """Return a figure for light and dark pages, or which runs it requires."""
    figure = drawing.figure
    if drawing.light is None:
        requires = f'<p class="absent">missing: requires {as_html(figure.requires)}</p>'
        return f'<section id="{figure.name}" class="without"><h2>{as_html(figure.title)}</h2>{requires}</section>'
    width = round(int.from_bytes(drawing.light[16:20]) * 96 / DPI)  # from the PNG's header
    return (
        f'<section id="{figure.name}"><h2>{as_html(figure.title)}</h2><figure><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_inline(drawing.dark)}">'
        f'<img alt="{as_html(figure.title)}" width="{width}" src="{_inline(drawing.light)}"></picture>'
        f"<figcaption>{as_html(figure.caption)}</figcaption></figure></section>"
    )


def _summary(tables: Sequence[Table], runs: Sequence[Run]) -> str:
    first = {  # several rows can stand beside one number of the paper: the first counts, of the longest training
        (content.name, row.key, i): cell
        for content in tables
        for row in reversed(content.rows)
        for i, cell in enumerate(row.cells)
        if cell.printed and cell.text is None
    }
    measured = [cell for cell in first.values() if not cell.is_missing]
    compared = [cell for cell in measured if cell.z is not None]
    near = sum(abs(cell.z) <= 2 for cell in compared)
    hours = sum(run.result.get("seconds") or 0 for run in runs) / 3600
    facts = [
        (str(len(runs)), "finished runs"),
        (f"{len(measured)} / {len(first)}", "of the paper's results measured"),
        (f"{near} / {len(compared)}", "of the results with a z have |z| ≤ 2"),
        (f"{hours:.3g} h", "of computing"),
    ]
    return '<dl class="facts">' + "".join(f"<div><dt>{a}</dt><dd>{as_html(b)}</dd></div>" for a, b in facts) + "</dl>"


def _notes(runs: Sequence[Run], damaged: Sequence[Damaged], root: Path) -> str:
    """Return the runs' warnings and notes, each once with its runs, and the damaged files."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for note in [*(run.result.get("warnings") or ()), *(run.result.get("notes") or ())]:
            found.setdefault(str(note), []).append(_short(run.path, root))
    items = []
    for text, paths in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(paths) - _PATHS} more" if len(paths) > _PATHS else ""
        items.append(f"<li>{as_html(text)}<small>{as_html(', '.join(paths[:_PATHS]))}{more}</small></li>")
    broken = [
        f"<li class='far'>damaged, left out: {as_html(str(d.path))}<small>{as_html(d.reason)}</small></li>"
        for d in damaged
    ]
    if not items and not broken:
        return ""
    return f'<section id="notes"><h2>Notes and warnings</h2><ul class="notes">{"".join(broken + items)}</ul></section>'


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min" if value < 36_000 else f"{value / 3600:.1f} h"


def _provenance(runs: Sequence[Run], root: Path) -> str:
    """Return the table of runs."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in _provenance_cells(run, root)) + "</tr>" for run in runs]
    heads = ("data set", "run", "seed", "time", "device", "differences from the paper", "directory")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<section id="runs"><h2>Runs</h2>{_versions(runs)}<div class="scroll"><table class="runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _provenance_cells(run: Run, root: Path) -> list[str]:
    method = run.result.get("method")
    name = METHOD_NAMES.get(method, method or "") + (" · evaluate" if run.task == "evaluate" else "")
    name = name if run.task in ("classifier", "evaluate") else run.task
    epsilon = run.setting("attack.epsilon") if method == "pgd" else None
    devices = [str(device) for device in run.result.get("devices") or []]
    count = f"{len(devices)} × " if len(devices) > 1 else ""
    path, command = as_html(_short(run.path, root)), _command(run.path / "command.txt")
    return [
        as_html(DATASET_NAMES.get(run.dataset, run.dataset)),
        as_html(name + (f" ε {epsilon:g}" if epsilon else "")),
        str(run.seed),
        _seconds(run.result.get("seconds")),
        as_html(f"{count}{devices[0]}" if devices else "–"),
        f"<small>{as_html('; '.join(differences(run)))}</small>",
        f"<details><summary>{path}</summary><code>{as_html(command)}</code></details>" if command else path,
    ]


def _command(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""


def _versions(runs: Sequence[Run]) -> str:
    counts: dict[str, int] = {}
    for run in runs:
        versions = run.result.get("versions") or {}
        text = ", ".join(f"{name} {version}" for name, version in versions.items()) or "versions not recorded"
        counts[text] = counts.get(text, 0) + 1
    lines = "".join(f"<li>{as_html(text)}<small>{count} runs</small></li>" for text, count in counts.items())
    return f'<ul class="notes">{lines}</ul>'


def render(
    *,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    runs: Sequence[Run],
    damaged: Sequence[Damaged],
    root: Path,
    command: str,
    when: str,
) -> str:
    """Return the page.

    Args:
      tables: all tables.
      drawings: all figures; the first comes before the tables.
      runs: all runs.
      damaged: result files that could not be used.
      root: directory to which paths are relative.
      command: the command that makes this report.
      when: its date and time.

    Returns:
      HTML that needs no other file, but for links to the tables' files.
    """
    first, *others = drawings
    style = STYLE.read_text(encoding="utf-8")
    entries = [(content.name, content.title) for content in tables]
    entries += [(drawing.figure.name, drawing.figure.title) for drawing in others]
    entries += [("notes", "Notes"), ("runs", "Runs")]
    index = "".join(f'<a href="#{name}">{as_html(title.partition(" · ")[0])}</a>' for name, title in entries)
    sections = [_figure(first), *map(_table, tables), *map(_figure, others)]
    sections += [_notes(runs, damaged, root), _provenance(runs, root)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>gradalign_jax report</title><style>{style}</style></head><body><header>"
        "<p class='kicker'>gradalign_jax</p><h1>In which direction do gradients of robust classifiers point?</h1>"
        "<p class='lead'>Measured here, beside the numbers of <em>Quantifying the Preferential Direction of the Model "
        "Gradient in Adversarial Training With Projected Gradient Descent</em> (Lanfredi, Schroeder, Tasdizen).</p>"
        f"{_summary(tables, runs)}<nav>{index}</nav></header><main>{''.join(sections)}</main>"
        f"<footer><code>{as_html(command)}</code><br>{as_html(when)}</footer></body></html>\n"
    )
