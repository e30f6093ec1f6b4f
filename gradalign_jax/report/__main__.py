"""Command line of the report: `python -m gradalign_jax.report DIR... --output=OUT`."""

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gradalign_jax import terminal
from gradalign_jax.errors import RunError
from gradalign_jax.paths import as_path, is_remote, make_folder, real
from gradalign_jax.report.runs import Damaged, Run, collect
from gradalign_jax.report.text import printable


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gradalign_jax.report",
        description="Write the paper's tables and figures from finished runs, and one HTML page with all of them.",
    )
    parser.add_argument("folder", nargs="+", type=_folder, metavar="DIR", help="directories searched for finished runs")
    parser.add_argument("--output", type=_folder, required=True, metavar="OUT", help="created if missing; files in it "
                        "are replaced")  # fmt: skip
    return parser.parse_args(argv)


def _folder(text: str) -> Path:
    try:
        return as_path(text)
    except RunError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str]) -> int:
    """Write the report; return the exit status, 2 where there is nothing to report or nowhere to write it."""
    arguments = parse_arguments(argv)
    for folder in arguments.folder:
        if not folder.is_dir():
            return _fail(f"no such directory: {folder}; give directories that hold finished runs")
    runs, damaged = collect(arguments.folder)
    if not runs:
        names = ", ".join(map(str, arguments.folder))
        broken = f" but {len(damaged)} damaged: {damaged[0].path} ({damaged[0].reason})" if damaged else ""
        return _fail(
            f"no finished run (result.json) below {names}{broken}; train one: python -m gradalign_jax.main --help"
        )
    for file in damaged:
        _say(f"{file.path} is damaged and left out: {file.reason}")
    try:
        page = _write(arguments.output, runs, damaged, arguments.folder, argv)
    except OSError as error:
        return _fail(f"cannot write {error.filename or arguments.output}: {error.strerror}; choose another --output")
    print(printable(f"{len(runs)} runs: {page}"))
    return 0


def _say(message: str) -> None:
    print(f"gradalign_jax: {printable(message)}", file=sys.stderr)


def _fail(message: str) -> int:
    _say(message)
    return 2


def _common(folders: Sequence[Path]) -> Path:
    """Return the closest directory that holds all of these."""
    first = folders[0]
    return next(path for path in (first, *first.parents) if all(folder.is_relative_to(path) for folder in folders))


def _write(
    output: Path, runs: Sequence[Run], damaged: Sequence[Damaged], folders: Sequence[Path], argv: Sequence[str]
) -> Path:
    """Write all files of the report; return the path of its page."""
    # Imported only now that there is something to draw: Matplotlib takes seconds.
    from gradalign_jax.report import figures, formats, page, results, tables

    make_folder(output)
    classifiers = results.classifiers(runs)
    contents = tables.all_tables(runs, classifiers)
    for table in contents:
        for kind, write in (("md", formats.markdown), ("csv", formats.as_csv), ("tex", formats.latex)):
            (output / f"{table.name}.{kind}").write_text(write(table), encoding="utf-8")
    text = "# gradalign_jax report\n\n" + "\n".join(map(formats.markdown, contents))
    (output / "report.md").write_text(text, encoding="utf-8")
    html = page.render(
        tables=contents,
        drawings=figures.draw_all(output, runs, classifiers),
        runs=runs,
        damaged=damaged,
        root=_common([Path(real(folder)) if not is_remote(folder) else folder for folder in folders]),
        command=f"python -m gradalign_jax.report {shlex.join(argv)}",
        when=f"{datetime.datetime.now():%-d %B %Y, %H:%M}",
    )
    (output / "index.html").write_text(html, encoding="utf-8")
    return output / "index.html"


if __name__ == "__main__":
    terminal.spell_symbols()
    sys.exit(main(sys.argv[1:]))
