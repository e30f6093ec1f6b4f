"""One HTML page with every table and figure, notes and provenance; nothing in it is loaded from elsewhere."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from gradalign_jax.report.departures import departures
from gradalign_jax.report.ink import Figure
from gradalign_jax.report.runs import Damaged, Run
from gradalign_jax.report.tables import METHODS, NAMES, Cell, Table

STYLE = Path(__file__).with_name("page.css")

_NOTES = 4  # so many parts of a row's note are shown at once
DPI = 144  # of the PNGs: one and a half of a page's own, so that they are sharp


class Drawn(NamedTuple):
    """A figure's two PNG files' bytes, for light and dark pages; None where nothing was measured."""

    figure: Figure
    light: bytes | None
    dark: bytes | None


def _text(text: str) -> str:
    """Escaped, with subscripts set as such."""
    return re.sub(r"(ᾱ|L|Ψ)_(Δx|c̃|c\*|m\(x\)|[xyαc])", r"\1<sub>\2</sub>", escape(text))


def _cell(cell: Cell, judged: bool) -> str:
    if not cell.values:
        printed = f'<span class="paper">{escape(cell.theirs())}</span>' if cell.printed else ""
        return f'<td class="missing"><span class="ours">missing</span>{printed}</td>'
    grade = "" if cell.z is None else (" near" if abs(cell.z) <= 2 else " off" if abs(cell.z) <= 4 else " far")
    mean, _, n = cell.ours().rpartition(" (")
    distance = f'<span class="z{grade}">{escape(cell.distance())}</span>' if judged else ""
    printed = f'<span class="paper">{escape(cell.theirs())}</span>'
    return f'<td><span class="ours">{escape(mean)}<small> n={n[:-1]}</small></span>{printed}{distance}</td>'


def _folded(note: str) -> str:
    """A note, its end hidden behind a click where it is long."""
    parts = note.split("; ")
    if len(parts) <= _NOTES:
        return escape(note)
    shown, hidden = ("; ".join(some) for some in (parts[: _NOTES - 1], parts[_NOTES - 1 :]))
    more = f"and {len(parts) - _NOTES + 1} more"
    return f"{escape(shown)} <details><summary>{more}</summary>{escape(hidden)}</details>"


def table(content: Table) -> str:
    """A table; rows without any measurement are set small."""
    head = "".join(f"<th>{_text(heading)}</th>" for heading in content.headings)
    judged = any(cell.z is not None for row in content.rows for cell in row.cells)
    lines = []
    for row in content.rows:
        note = f"<small>{_folded(row.note)}</small>" if row.note else ""
        cells = "".join(_cell(cell, judged) for cell in row.cells)
        empty = "" if any(cell.values for cell in row.cells) else ' class="empty"'
        lines.append(f"<tr{empty}><th>{_text(row.label)}{note}</th>{cells}</tr>")
    narrow = ' class="narrow"' if len(content.headings) < 3 else ""
    files = " · ".join(f'<a href="{content.name}.{kind}">{kind}</a>' for kind in ("csv", "md", "tex"))
    return (
        f'<section id="{content.name}"><h2>{_text(content.title)}</h2><div class="scroll"><table{narrow}>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="legend">{_text(content.legend)} <span class="files">Files: {files}</span></p></section>'
    )


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def figure(drawn: Drawn) -> str:
    """A figure for light and dark pages, or what it takes to have it."""
    told = drawn.figure
    if drawn.light is None:
        takes = f'<p class="absent">missing: it takes {_text(told.takes)}</p>'
        return f'<section id="{told.name}" class="without"><h2>{_text(told.title)}</h2>{takes}</section>'
    width = round(int.from_bytes(drawn.light[16:20]) * 96 / DPI)  # a PNG's width stands in its header
    return (
        f'<section id="{told.name}"><h2>{_text(told.title)}</h2><figure><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_inline(drawn.dark)}">'
        f'<img alt="{escape(told.title)}" width="{width}" src="{_inline(drawn.light)}"></picture>'
        f"<figcaption>{_text(told.caption)}</figcaption></figure></section>"
    )


def _summary(tables: Sequence[Table], runs: Sequence[Run]) -> str:
    first = {  # a number of the paper's counts once, however many rows stand beside it: the first, which is the longest
        (content.name, row.key, i): cell
        for content in tables
        for row in reversed(content.rows)
        for i, cell in enumerate(row.cells)
    }
    cells = [cell for cell in first.values() if cell.printed]
    measured = [cell for cell in cells if cell.values]
    judged = [cell for cell in measured if cell.z is not None]
    near = sum(abs(cell.z) <= 2 for cell in judged)
    hours = sum(run.result.get("seconds") or 0 for run in runs) / 3600
    facts = [
        (str(len(runs)), "finished runs"),
        (f"{len(measured)} / {len(cells)}", "of the paper's numbers measured"),
        (f"{near} / {len(judged)}", "of those with a z within |z| ≤ 2"),
        (f"{hours:.3g} h", "of computing"),
    ]
    return '<dl class="facts">' + "".join(f"<div><dt>{a}</dt><dd>{escape(b)}</dd></div>" for a, b in facts) + "</dl>"


def _notes(runs: Sequence[Run], damaged: Sequence[Damaged], root: Path) -> str:
    """What runs warn of, each line once with the runs it holds for, and files that could not be read."""
    said: dict[str, list[str]] = {}
    for run in runs:
        for note in [*(run.result.get("warnings") or ()), *(run.result.get("notes") or ())]:
            text = note if isinstance(note, str) else str(note)
            said.setdefault(text, []).append(_short(run.path, root))
    items = []
    for text, paths in sorted(said.items(), key=lambda item: -len(item[1])):
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        items.append(f"<li>{escape(text)}<small>{escape(', '.join(paths[:4]))}{more}</small></li>")
    broken = [
        f"<li class='far'>damaged, left out: {escape(str(d.path))}<small>{escape(d.reason)}</small></li>"
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
    lines = []
    for run in runs:
        method = run.result.get("method")
        what = METHODS.get(method, method or "") + (" · evaluate" if run.task == "evaluate" else "")
        what = what if run.task in ("classifier", "evaluate") else run.task
        epsilon = run.setting("attack.epsilon") if method == "pgd" else None
        how = "; ".join(departures(run))
        devices = run.result.get("devices") or []
        count = f"{len(devices)} × " if len(devices) > 1 else ""
        command = run.path / "command.txt"
        path = _short(run.path, root)
        where = f"<details><summary>{escape(path)}</summary><code>{escape(_command(command))}</code></details>"
        cells = [
            escape(NAMES.get(run.dataset, run.dataset)),
            _text(what) + (f" ε {epsilon:g}" if epsilon else ""),
            str(run.seed),
            _seconds(run.result.get("seconds")),
            escape(f"{count}{devices[0]}" if devices else "–"),
            f"<small>{escape(how)}</small>",
            where if command.exists() else escape(path),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("data set", "run", "seed", "time", "device", "other than in the paper", "directory")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<section id="runs"><h2>Runs</h2>{_versions(runs)}<div class="scroll"><table class="runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _command(file: Path) -> str:
    return file.read_text(errors="replace").strip() if file.exists() else ""


def _versions(runs: Sequence[Run]) -> str:
    sets: dict[str, int] = {}
    for run in runs:
        versions: Mapping[str, str] = run.result.get("versions") or {}
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        sets[text or "versions not recorded"] = sets.get(text or "versions not recorded", 0) + 1
    lines = "".join(f"<li>{escape(text)}<small>{count} runs</small></li>" for text, count in sets.items())
    return f'<ul class="notes">{lines}</ul>'


def render(
    *,
    tables: Sequence[Table],
    figures: Sequence[Drawn],
    runs: Sequence[Run],
    damaged: Sequence[Damaged],
    root: Path,
    command: str,
    when: str,
) -> str:
    """The whole page."""
    first, *others = figures
    entries = [(content.name, content.title) for content in tables]
    entries += [(drawn.figure.name, drawn.figure.title) for drawn in others]
    entries += [("notes", "Notes"), ("runs", "Runs")]
    index = "".join(f'<a href="#{name}">{escape(title.partition(" · ")[0])}</a>' for name, title in entries)
    sections = [figure(first), *map(table, tables), *map(figure, others)]
    sections += [_notes(runs, damaged, root), _provenance(runs, root)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>gradalign_jax report</title><style>{STYLE.read_text()}</style></head><body><header>"
        "<p class='kicker'>gradalign_jax</p><h1>In which direction do gradients of robust classifiers point?</h1>"
        "<p class='lead'>Measured here, beside the numbers of <em>Quantifying the Preferential Direction of the Model "
        "Gradient in Adversarial Training With Projected Gradient Descent</em> (Lanfredi, Schroeder, Tasdizen).</p>"
        f"{_summary(tables, runs)}<nav>{index}</nav></header><main>{''.join(sections)}</main>"
        f"<footer><code>{escape(command)}</code><br>{escape(when)}</footer></body></html>\n"
    )
