"""The report's files and its page, from made-up result files."""

import csv
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.report import __main__ as report
from gradalign_jax.report import formats, tables
from made_up_runs import classifier, found_in, series, write

ROOT = Path(__file__).resolve().parents[1]


def test_csv_and_latex_are_well_formed(tmp_path):
    series(tmp_path / "s")
    classifier(tmp_path / "b", notes=["50 % & more_"], config={"extra": {"a_b": "x|y"}})
    runs, found = found_in(tmp_path)
    for table in tables.all_tables(runs, found):
        lines = list(csv.DictReader(io.StringIO(formats.as_csv(table))))
        assert len(lines) == len(table.rows) * len(table.columns)
        assert all(None not in line and None not in line.values() for line in lines)
        text = formats.latex(table)
        body = [line for line in text.splitlines() if line.endswith((r" \\", r"\\[1ex]"))]
        assert len(body) == 1 + len(table.rows)
        assert text.count("{") == text.count("}")
        assert text.count("$") % 2 == 0
        for line in body:  # one column more than there are cells
            assert re.sub(r"\\&", "", line).count("&") == len(table.columns)
        uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert uncommented.isascii(), set(re.findall(r"[^\x00-\x7f]", uncommented))
        columns = {line.count(" | ") for line in formats.markdown(table).splitlines() if line.startswith("| ")}
        assert len(columns) == 1
    (line,) = [r for r in csv.DictReader(io.StringIO(formats.as_csv(tables.table_2(found)))) if r["ours"] == "0.006"]
    assert (line["quantity"], line["n"], float(line["paper"])) == ("pgd_linf", "1", 0.0058)


def pictures(folder, **arrays):
    np.savez_compressed(folder / "pictures.npz", **arrays)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every kind of run with its pictures, one damaged file, and the report of all of it."""
    root = tmp_path_factory.mktemp("whole")
    random = np.random.default_rng(0)
    series(root / "s")
    for method in paper.METHODS:
        linearity = {"approximated": [*random.uniform(-1, 1, 9), None], "carlini_wagner": [*random.uniform(0, 1, 10)]}
        run = classifier(root / method, "mnist35", method, notes=["<b>careful</b>"], linearity=linearity)
        image = random.uniform(-1, 1, (4, 6, 6, 1))
        pictures(run, image=image, label=[0, 0, 1, 1], target=[1, 1, 0, 0], gradient=image)
        (run / "command.txt").write_text("python -m gradalign_jax.main --config=x\n")
    for dataset in ("spheres", "squares", "mnist35", "copd"):
        shape = (4, 500) if dataset == "spheres" else (4, 6, 6, 1)
        run = write(root / dataset, {"dataset": dataset, "task": "vrgan", "seed": 0, "similarity": 0.8})
        pictures(run, image=random.uniform(-1, 1, shape), label=[0, 0, 1, 1], estimate=random.normal(size=shape))
    for dataset, classes, channels in (("squares32", 2, 1), ("mnist", 10, 1), ("cifar10", 10, 3)):
        run = write(root / dataset, {"dataset": dataset, "task": "project", "seed": 0, "similarity": None})
        image = random.uniform(-1, 1, (4, 8, 8, channels))
        projected = random.uniform(-1, 1, (4, classes, 8, 8, channels))
        pictures(run, image=image, label=[0, 0, 1, 1], projected=projected)
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text('{"dataset": "sph')
    assert report.main([str(root), f"--output={root / 'out'}"]) == 0
    return root


class Links(HTMLParser):
    """Addresses that a page would load or lead to."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_holds_every_figure(whole):
    page = (whole / "out" / "index.html").read_text()
    links = Links(page)
    assert not links.open
    for address in links.addresses:
        local = address.startswith(("#", "data:image/png;base64,")) or (whole / "out" / address).exists()
        assert local, address[:80]
    assert not re.search(r"https?:|@import|url\(", page)
    names = ["overview", *(f"figure{i}" for i in range(4, 8)), *(f"figureS{i}" for i in range(1, 9))]
    for name in names:
        section = page[page.index(f'<section id="{name}">') :].partition("</section>")[0]
        assert section.count("data:image/png;base64,") == 2, name
        assert (whole / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (whole / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("table1", "table2", "table3", "tableS1", "tableS2"):
        assert f'<section id="{name}">' in page


def test_notes_are_escaped_and_damage_is_named(whole):
    page = (whole / "out" / "index.html").read_text()
    assert "&lt;b&gt;careful&lt;/b&gt;" in page
    assert "<b>careful" not in page
    assert f"damaged, left out: {whole / 'broken' / 'result.json'}" in page
    assert "python -m gradalign_jax.main --config=x" in page


def test_nulls_and_broken_pictures_are_missing_and_nothing_worse(tmp_path):
    names = ("seed", "accuracy", "epsilon_half", "curves", "seconds", "notes", "versions", "config", "linearity")
    nulls = dict.fromkeys((*names, "similarity", "norms", "devices", "warnings", "alpha_x"))
    for task in (*paper.METHODS, "vrgan", "project", "evaluate"):
        own = {"method": task} if task in paper.METHODS else {"task": task, "method": None}
        folder = write(tmp_path / task, {"dataset": "squares32", **nulls, **own})
        (folder / "pictures.npz").write_bytes(b"PK broken")
    linearity = {"linearity": {"approximated": [0.1, -0.2], "carlini_wagner": [0.1, None]}}
    write(tmp_path / "other", {"dataset": "of one's own", **nulls, "method": "pgd", **linearity})
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize(
    "spoilt",
    [
        *({"accuracy": "x"}, {"accuracy": math.nan}, {"epsilon_half": 0.3}, {"config": [1]}, {"method": ["x"]}),
        *({"curves": {"a": None}}, {"curves": {"a": {"epsilons": [0, 1]}}}, {"norms": {"x": 1.0}}),
        {"curves": {"a": {"epsilons": [0, 1], "errors": [0]}}},
    ],
    ids=str,
)
def test_a_result_of_another_shape_is_named_and_takes_no_other_along(tmp_path, spoilt, capsys):
    classifier(tmp_path / "bad", **{key: value for key, value in spoilt.items() if key != "config"})
    if "config" in spoilt:
        write(tmp_path / "bad", {"dataset": "spheres", **spoilt})
    classifier(tmp_path / "good")
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
    answer = capsys.readouterr()
    assert answer.err.count("\n") == 1
    assert f"bad/result.json is damaged and left out: {next(iter(spoilt))}" in answer.err
    assert answer.out.startswith("1 runs")


def test_a_figure_without_runs_says_what_it_takes(tmp_path):
    classifier(tmp_path / "a")
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    section = page[page.index('<section id="figure7"') :].partition("</section>")[0]
    assert "missing: it takes an evaluation" in section
    assert not (tmp_path / "out" / "figure7.png").exists()
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0  # again, over its own output
    assert report.main([str(tmp_path / "a"), f"--output={tmp_path / 'a'}"]) == 0
    assert report.main([str(tmp_path / "a"), f"--output={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("content", "named"), [(None, "no finished run"), ("{", "1 damaged"), ("[]", "no result of a run")], ids=str
)
def test_nothing_to_report_is_one_line_without_jax_or_matplotlib(tmp_path, content, named):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    code = (
        "import sys; from gradalign_jax.report.__main__ import main; status = main(sys.argv[1:]); "
        "assert not {'jax', 'matplotlib'} & set(sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "--output", str(tmp_path / "out")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert named in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_there_is_named(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere"), f"--output={tmp_path}"]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_the_report_never_imports_jax(whole):
    code = "import sys; from gradalign_jax.report import __main__, plots; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
