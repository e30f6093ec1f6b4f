"""Writes the report: `python -m gradalign_jax.report DIR... --output=OUT`."""

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

from gradalign_jax.report import runs as files


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gradalign_jax.report",
        description="The paper's tables and figures from finished runs, and one HTML page with all of it.",
    )
    parser.add_argument("folder", nargs="+", type=Path, metavar="DIR", help="runs are looked for below it")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="made if missing; files are replaced")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Returns the exit status: 2, after one line, where there is nothing to report."""
    arguments = parse_arguments(argv)
    for folder in arguments.folder:
        if not folder.is_dir():
            return _fail(f"no such directory: {folder}")
    runs, damaged = files.collect(arguments.folder)
    if not runs:
        names = ", ".join(map(str, arguments.folder))
        broken = f" but {len(damaged)} damaged: {damaged[0].path} ({damaged[0].reason})" if damaged else ""
        return _fail(
            f"no finished run (result.json) below {names}{broken}; train one: python -m gradalign_jax.main --help"
        )
    for file in damaged:
        print(f"gradalign_jax: {file.path} is damaged and left out: {file.reason}", file=sys.stderr)
    try:
        page = _write(arguments.output, runs, damaged, arguments.folder, argv)
    except OSError as error:
        return _fail(f"cannot write {error.filename or arguments.output}: {error.strerror}; choose another --output")
    print(f"{len(runs)} runs → {page}")
    return 0


def _fail(message: str) -> int:
    print(f"gradalign_jax: {message}", file=sys.stderr)
    return 2


def _write(output: Path, runs, damaged, folders: list[Path], argv: list[str]) -> Path:
    """All files of the report; returns the page."""
    # Only now that there is something to draw: matplotlib takes its time.
    from gradalign_jax.report import formats, page, plots, results, tables

    output.mkdir(parents=True, exist_ok=True)
    found = results.classifiers(runs)
    contents = tables.all_tables(runs, found)
    for table in contents:
        for kind, write in (("md", formats.markdown), ("csv", formats.as_csv), ("tex", formats.latex)):
            (output / f"{table.name}.{kind}").write_text(write(table))
    (output / "report.md").write_text("# gradalign_jax report\n\n" + "\n".join(map(formats.markdown, contents)))
    html = page.render(
        tables=contents,
        figures=plots.draw_all(output, runs, found),
        runs=runs,
        damaged=damaged,
        root=Path(os.path.commonpath([folder.resolve() for folder in folders])),
        command=f"python -m gradalign_jax.report {shlex.join(argv)}",
        when=f"{datetime.datetime.now():%-d %B %Y, %H:%M}",
    )
    (output / "index.html").write_text(html)
    return output / "index.html"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
