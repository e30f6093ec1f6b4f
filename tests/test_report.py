"""The report's files and its page, from made-up result files."""

import copy
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.report import __main__ as report
from gradalign_jax.report import (
    arrays,
    checks,
    figures_curves,
    figures_geometry,
    formats,
    page,
    results,
    runs,
    style,
    tables,
    text,
)
from gradalign_jax.report.figures import FIGURES
from gradalign_jax.report.tables_classifiers import table_2
from made_up_runs import GRID, classifier, found_in, series, suite, write

ROOT = Path(__file__).resolve().parents[1]
THEORY = {"condition": 0.9, "lemma_1": 0.8, "lemma_1_pgd": 0.7, "lower_bound": 0.05, "upper_bound": 0.2}
DIRECTIONS = {
    "alignment": {"plain": {"exact": 0.4, "nearest": None}, "smoothgrad": {"exact": 0.5, "nearest": -0.1}},
    "etmann": {"plain": 1.5, "predicted": 1.25},
    "tangent_share": {"plain": 0.3, "smoothgrad": 0.6, "random": 0.1},
    "removal": {"plain": [0.9, 0.5], "random": [1.0, 0.75]},
    "noise": {"on": [0.1, 0.2], "off": [0.01, 0.02]},
    **{"removed": [0.1, 0.3], "radii": [0.05, 0.1]},
}
SUITE = suite({"apgd_ce": [0.0, 0.5, 1.0], "square": [0.0, 0.6, 1.0]}, 0.09)


def test_csv_and_latex_are_well_formed(tmp_path):
    series(tmp_path / "s")
    classifier(tmp_path / "suite", "mnist35", "align", theory=THEORY, suite=SUITE, accuracy_by_class={"0": 0.9})
    classifier(tmp_path / "b", notes=["50 % & more_"], config={"extra": {"a_b": "x|y"}})
    for table in tables.all_tables(*found_in(tmp_path)):
        lines = list(csv.DictReader(io.StringIO(formats.as_csv(table))))
        assert len(lines) == len(table.rows) * len(table.columns)
        assert all(None not in line and None not in line.values() for line in lines)
        latex = formats.latex(table)
        body = [line for line in latex.splitlines() if line.endswith((r" \\", r"\\[1ex]"))]
        assert len(body) == 1 + len(table.rows)
        assert latex.count("{") == latex.count("}")
        assert latex.count("$") % 2 == 0
        for line in body:  # one column more than there are cells
            assert re.sub(r"\\&", "", line).count("&") == len(table.columns)
        uncommented = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
        assert uncommented.isascii(), set(re.findall(r"[^\x00-\x7f]", uncommented))
        columns = {line.count(" | ") for line in formats.markdown(table).splitlines() if line.startswith("| ")}
        assert len(columns) == 1
    lines = csv.DictReader(io.StringIO(formats.as_csv(table_2(found_in(tmp_path)[1]))))
    (line,) = [line for line in lines if (line["dataset"], line["ours"]) == ("spheres", "0.006")]
    assert (line["quantity"], line["n"], float(line["paper"])) == ("pgd_linf", "1", 0.0058)


def pictures(folder, **images):
    np.savez_compressed(folder / "pictures.npz", **images)


HOSTILE = "<script>alert(1)<'&{}$.."


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every kind of run with its pictures, one damaged file, and the report of all of it."""
    root = tmp_path_factory.mktemp("whole")
    random = np.random.default_rng(0)
    series(root / "s")
    for method in paper.METHODS:
        linearity = {"approximated": [*random.uniform(-1, 1, 9), None], "carlini_wagner": [*random.uniform(0, 1, 10)]}
        more = {"theory": THEORY, "suite": SUITE, "directions": DIRECTIONS}
        run = classifier(root / method, "mnist35", method, notes=["<b>careful</b>"], linearity=linearity, **more)
        image = random.uniform(-1, 1, (4, 6, 6, 1))
        further = dict.fromkeys(("gradient_plain", "gradient_smoothgrad", "delta_x_exact"), image)
        pictures(run, image=image, label=[0, 0, 1, 1], target=[1, 1, 0, 0], gradient=image, **further)
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
    hostile = write(root / HOSTILE, {"dataset": HOSTILE, "task": HOSTILE, "seed": 0, "devices": [HOSTILE]})
    (hostile / "command.txt").write_text(HOSTILE)
    write(root / "hostile", {"dataset": "mnist", "method": HOSTILE, "versions": {HOSTILE: HOSTILE}, "notes": [HOSTILE]})
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text('{"dataset": "sph')
    assert report.main([str(root), f"--output={root / 'out'}"]) == 0
    return root


def test_projections_before_the_penalty_are_drawn_below_the_last(tmp_path):
    run = write(tmp_path, {"dataset": "mnist", "task": "project", "seed": 0, "similarity": None})
    projected = np.linspace(-1, 1, 2 * 10 * 64).reshape(2, 10, 8, 8, 1)
    first = np.where(np.arange(2)[:, None, None, None, None] == 0, -projected, np.nan)
    pictures(run, image=projected[:, 0], label=[3, 5], projected=projected, projected_first=first)
    (figure,) = [figure for figure in FIGURES if figure.name == "figureS5"]
    drawn = figure.draw(style.Inputs(*found_in(tmp_path)), style.LIGHT)
    (axis,) = drawn.axes
    assert [name.get_text() for name in axis.get_yticklabels()] == ["3", "before the penalty", "5"]
    assert len(axis.images) == 2 * 11 + 10  # x stands beside the last ones alone
    shown = np.stack([image.get_array() for image in axis.images[11:21]])
    np.testing.assert_array_equal(shown, first[0, ..., 0].astype(np.float32))


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
    names = [
        "overview",
        "directions_matrix",
        *(f"figure{i}" for i in range(1, 8)),
        *(f"figureS{i}" for i in range(1, 9)),
    ]
    for name in names:
        section = page[page.index(f'<section id="{name}">') :].partition("</section>")[0]
        assert section.count("data:image/png;base64,") == 2, name
        assert (whole / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (whole / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("table1", "table2", "table3", "theory", "suites", "directions", "tableS1", "tableS2"):
        assert f'<section id="{name}">' in page


def test_notes_are_escaped_and_damage_is_named(whole):
    page = (whole / "out" / "index.html").read_text()
    assert "&lt;b&gt;careful&lt;/b&gt;" in page
    assert "<b>careful" not in page
    assert f"damaged, left out: {whole / 'broken' / 'result.json'}" in page
    assert "python -m gradalign_jax.main --config=x" in page


def test_nothing_that_a_run_says_becomes_part_of_the_page(whole):
    page = (whole / "out" / "index.html").read_text()
    assert page.count("<script") == page.count("<img src=x") == 0
    assert page.count("&lt;script") >= 5
    for line in (whole / "out" / "report.md").read_text().splitlines():
        assert "<script" not in line.replace("\\<", "")
    for name in ("table2.csv", "report.md", "index.html"):
        assert (whole / "out" / name).exists()
    assert {file.name for file in whole.iterdir() if file.is_file()} == set()


def test_nulls_and_broken_pictures_count_as_missing(tmp_path):
    names = ("seed", "accuracy", "epsilon_half", "curves", "seconds", "notes", "versions", "config", "linearity")
    nulls = dict.fromkeys((*names, "similarity", "norms", "devices", "warnings", "alpha_x"))
    for task in (*paper.METHODS, "vrgan", "project", "evaluate"):
        own = {"method": task} if task in paper.METHODS else {"task": task, "method": None}
        folder = write(tmp_path / task, {"dataset": "squares32", **nulls, **own})
        (folder / "pictures.npz").write_bytes(b"PK broken")
    linearity = {"linearity": {"approximated": [0.1, -0.2], "carlini_wagner": [0.1, None]}}
    write(tmp_path / "other", {"dataset": "your $own \\x", **nulls, "method": "pgd", **linearity})
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        *({"accuracy": "x"}, {"accuracy": math.nan}, {"epsilon_half": 0.3}, {"config": [1]}, {"method": ["x"]}),
        *({"curves": {"a": None}}, {"curves": {"a": {"epsilons": [0, 1]}}}, {"norms": {"x": 1.0}}),
        *({"curves": {"a": {"epsilons": [0, 1], "errors": [0]}}}, {"seed": "one"}, {"notes": 3}, {"seconds": 10**400}),
        *({"config": {"train": {"epochs": "many"}}}, {"config": {"delta_x": {"store": "a\0b"}}}, {"notes": ["\ud800"]}),
        *({"theory": [1]}, {"theory": {"condition": "x"}}, {"accuracy_by_class": 0.9}),
        *({"accuracy_by_class": {"one": 0.9}}, {"suite": [1]}, {"suite": {"norm": "l1"}}),
        *({"suite": {"curves": {"a": {"epsilons": [0, 1], "errors": [0]}}}}, {"suite": {"fooled_by": ["clean"]}}),
        *({"suite": SUITE | {"name": 3}}, {"suite": {"epsilon_half": {"worst_linf": "x"}}}),
        {"suite": {"curves": {"a": {**SUITE["curves"]["worst_linf"], "seconds": "x"}}}},
        *({"linearity": {"approximated": 1}}, {"curves": {"a": {"epsilons": [0], "errors": [0]}}}, {"versions": 3}),
    ],
    ids=ascii,
)
def test_a_damaged_result_is_named_and_left_out(tmp_path, damage, capsys):
    classifier(tmp_path / "good")
    result = json.loads((tmp_path / "good" / "result.json").read_text())
    write(tmp_path / "bad", result | damage)
    ((path, reason),) = runs.collect([tmp_path])[1]
    assert path == tmp_path / "bad" / "result.json"
    assert next(iter(damage)) in reason or damage == {"notes": ["\ud800"]}  # which the encoder finds
    if next(iter(damage)) in ("accuracy", "config"):  # the others differ in the check alone
        assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
        answer = capsys.readouterr()
        assert answer.err.count("\n") == 1
        assert f"bad/result.json is damaged and left out: {next(iter(damage))}" in answer.err
        assert answer.out.startswith("1 runs")
        assert "bad/result.json" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"dataset": ""' + b"\0" * 9])
def test_a_file_that_is_no_json_is_damaged(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    found, (damaged,) = runs.collect([tmp_path])
    assert not found
    assert damaged.reason
    assert "\n" not in damaged.reason


WRONG = (
    None,
    True,
    -1,
    0,
    1e90,
    1e308,
    10**400,
    "x",
    "a|b<i>$%\\",
    "",
    [],
    [None],
    ["x"],
    [[1]],
    {},
    {"x": "y"},
    math.nan,
)


def places(tree, path=()):
    """Yield the paths of all entries of nested tables and lists, the first item of each list only."""
    for key, value in tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1]:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def complete_results():
    """Return a result of each kind with every entry that runs write."""
    curve = {"epsilons": GRID, "errors": [0.0, 0.4, 1.0], "threshold": 0.5, "censored": False, "images": 9}
    measured = {
        **{"accuracy": 0.9, "epsilon_half": {"pgd_linf": 0.1, "pgd_l2": 0.2, "square_linf": 0.3}, "alpha_x": 0.2},
        **{"alpha_delta_x": 0.3, "curves": {"pgd_linf": curve, "square_linf": {**curve, "queries": 50}}},
        "linearity": {"approximated": [0.1, -0.2], "carlini_wagner": [0.1, None]},
        **{"theory": THEORY, "suite": SUITE, "directions": DIRECTIONS, "accuracy_by_class": {"0": 0.8, "1": 1.0}},
        **{"seconds": 3.0, "devices": ["cpu"], "versions": {"jax": "1"}, "notes": ["a"], "warnings": ["b"]},
    }
    config = {
        **{"task": "classifier", "method": "pgd", "seed": 0, "model": {"pretrained": "a/b", "name": "resnet"}},
        **{"train": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4}, "data": {"limit": 5, "name": "mnist35"}},
        **{"attack": {"epsilon": 0.3, "steps": 40, "step_size": 0.02}, "delta_x": {"generator": "g", "store": ""}},
        "evaluate": {
            "images": 3,
            "square_queries": 5,
            "suite_steps": 100,
            "suite_queries": 5,
            "linf_epsilons": [0.1, 0.2],
            "generator": "g",
        },
        "precision": {"training": "tf32"},
    }
    splits = {"splits": {"train": {"images": 3, "share_of_class_0": 0.5}}, "shape": [28, 28, 1]}
    yield {"dataset": "mnist35", "method": "pgd", "seed": 0, **measured, **splits, "config": config}
    evaluation = {"task": "evaluate", "classifier": "gone", "evaluate": {"square_queries": 5, "cw_images": 2}}
    more = {"evaluated": "gone", "evaluated_config": config}
    yield {"dataset": "mnist35", "method": "pgd", "seed": 0, **measured, "config": evaluation, **more}
    norms = {"x": {"0": 1.0, "1": 1.3}, "delta": {"0": 0.3, "1": 0.32}}
    estimate = {"similarity": 0.8, "similarity_by_class": {"0": 0.7}, "norms": norms, "moved": 0.5}
    vrgan = {"task": "vrgan", "generator": {"width": 8}, "train": {"epochs": 2, "steps_per_epoch": 3}}
    yield {
        "dataset": "spheres",
        "task": "vrgan",
        "seed": 0,
        **estimate,
        "moved_by_destination": {"0": 1.0},
        "config": vrgan,
    }
    project = {"task": "project", "project": {"steps": [6, 2], "penalty": 1.5, "splits": ["test"], "generator": "g"}}
    yield {"dataset": "mnist", "task": "project", "pairs": 3, "similarity": {"mean": 0.1}, "config": project}
    yield {"dataset": "mnist", "task": "gan", "seconds": 3.0, "config": {"task": "gan", "gan": {"iterations": 3}}}
    scores = {"estimator": "nearest of 8", "cosine": 0.2, "cosine_sd": 0.1, "success": 0.5, "length": 2.0}
    scores |= {"seconds_to_make": 0.1, "seconds_per_1000": 0.2, "epsilon_half": 0.3, "alpha_delta_x": 0.4}
    yield {"dataset": "spheres", "task": "deltax", "images": 50, "estimators": [scores]}


def render(found):
    """Build all of a report but the figures."""
    classifiers = results.classifiers(found)
    contents = tables.all_tables(found, classifiers)
    for table in contents:
        for write_table in (formats.markdown, formats.as_csv, formats.latex):
            write_table(table).encode()
    html = page.render(
        tables=contents, drawings=[page.Drawing(FIGURES[0], None, None)], runs=found, damaged=[], root=ROOT,
        command="c", when="w",
    )  # fmt: skip
    assert not Links(html).open
    return html


@pytest.mark.parametrize("kind", range(6))
def test_no_edit_of_a_result_stops_a_report(kind):
    """Every entry of a result in turn holds everything that it should not."""
    result = list(complete_results())[kind]
    checks.check(result)
    accepted = 0
    for path in places(result):
        for wrong in WRONG:
            edited = copy.deepcopy(result)
            entry = edited
            for key in path[:-1]:
                entry = entry[key]
            entry[path[-1]] = wrong
            try:
                checks.check(json.loads(json.dumps(edited)))
            except ValueError:
                continue
            render(runs.linked([runs.Run(ROOT / "nowhere", edited)]))
            accepted += 1
    assert accepted > 30


@pytest.mark.parametrize("edit", ["none", "dtype", "shape", "label", "nan", "object", "target"])
def test_edited_pictures_are_left_out(tmp_path, edit):
    image, label = np.zeros((2, 4, 4, 1)), np.array([0, 1])
    images = {"image": image, "label": label, "target": 1 - label, "gradient": image}
    change = {
        "none": {},
        "dtype": {"gradient": image.astype(str)},
        "shape": {"gradient": image[:1]},
        "label": {"label": label[:, None]},
        "nan": {"label": np.array([0, np.nan])},
        "object": {"extra": np.array([{}, None])},
        "target": {"target": np.array([0.5, 0.1])},
    }[edit]
    pictures(tmp_path, **images | change)
    assert (arrays.read_pictures(runs.Run(tmp_path, {}), ("gradient",)) is None) == (edit != "none")
    assert arrays.read_pictures(runs.Run(tmp_path, {}), ("projected",)) is None


def test_links_to_runs_are_followed_once(tmp_path):
    run = classifier(tmp_path / "elsewhere" / "run")
    shown = tmp_path / "shown"
    (shown / "below").mkdir(parents=True)
    (shown / "a").symlink_to(run)
    (shown / "b").symlink_to(run)
    (shown / "below" / "cycle").symlink_to(shown)
    (shown / "gone").symlink_to(tmp_path / "nowhere")
    found, damaged = runs.collect([shown, shown / "below"])
    assert [one.path for one in found] == [run.resolve()]
    assert not damaged
    (shown / "below" / "result.json").symlink_to(tmp_path / "nowhere.json")
    assert [one.path.name for one in runs.collect([shown])[1]] == ["nowhere.json"]


NASTY = "<script>&\"' | \\$x_1$ %# \x1b[31m\nnew`~^{}"


def test_everything_printed_is_escaped(tmp_path, capsys):
    own = {"notes": [NASTY], "warnings": [NASTY], "devices": [NASTY], "versions": {NASTY: NASTY}}
    classifier(tmp_path / "a", **own, config={"model": {"pretrained": NASTY, "hidden": [NASTY]}})
    write(tmp_path / "b", {"dataset": NASTY, "method": "pgd", "accuracy": 0.5, "config": {"train": {"epochs": 3}}})
    write(tmp_path / "c\x1b[31m", {"dataset": "mnist", "accuracy": NASTY})
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
    answer = capsys.readouterr()
    assert "\x1b" not in answer.out + answer.err
    assert answer.err.count("\n") == 1
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in html
    assert "\x1b" not in html
    assert html.count("&lt;script&gt;") >= 5
    assert not Links(html).open
    for line in (tmp_path / "out" / "table2.md").read_text().splitlines():
        if line.startswith("| ") and "script" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == 2 + len(paper.COLUMNS)
    latex = (tmp_path / "out" / "table2.tex").read_text()
    assert r"\textbackslash{}\$x\_1\$ \%\#" in latex


@pytest.mark.parametrize(
    ("written", "html", "latex"),
    [
        ("ᾱ_Δx of L_α", "ᾱ<sub>Δx</sub> of L<sub>α</sub>", r"$\bar{\alpha}_{\Delta x}$ of $L_\alpha$"),
        ("Ψ_c̃ − Ψ_m(x)", "Ψ<sub>c̃</sub> − Ψ<sub>m(x)</sub>", r"$\Psi_{\tilde{c}}$ $-$ $\Psi_{m(x)}$"),
        ("a_b & <c>", "a_b &amp; &lt;c&gt;", r"a\_b \& $<$c$>$"),
    ],
)
def test_symbols_are_set_and_the_rest_is_escaped(written, html, latex):
    assert (text.as_html(written), text.as_latex(written)) == (html, latex)


def test_theorem_1_holds_in_figure_1():
    """Distances to the boundary as the smallest to any of its points, not by the formula for them."""
    geometry = figures_geometry.theorem_1(angle=0.7, offset=0.03)
    along = np.array([geometry.normal[1], -geometry.normal[0]])
    boundary = geometry.threshold * geometry.normal + np.linspace(-2, 2, 400_001)[:, None] * along
    nearest = [np.linalg.norm(boundary - point, axis=1).min() for point in geometry.points]
    np.testing.assert_allclose(geometry.robustness, nearest, atol=1e-9)
    low, high = geometry.points
    cosine = (high - low) @ geometry.normal / np.linalg.norm(high - low)
    assert sum(nearest) == pytest.approx(np.linalg.norm(high - low) * cosine, abs=1e-9)
    assert (np.linalg.norm(low), np.linalg.norm(high)) == pytest.approx((1.0, 1.3))
    misclassified = figures_geometry.theorem_1(angle=0.7, offset=0.2)
    assert misclassified.robustness[1] < 0  # the boundary is beyond the point
    assert misclassified.robustness.sum() == pytest.approx(0.3 * math.cos(0.7))


def test_squares_of_the_figures_are_the_papers():
    large, small = (figures_geometry.square(side, 224) for side in (142, 88))
    assert np.linalg.norm(small - large) == pytest.approx(math.sqrt(142**2 - 88**2))
    noise = figures_geometry.noise(224, 2.5, 0.5, seed=0)[..., 0]
    assert noise.std() == pytest.approx(0.5)
    neighbors = np.mean(noise[1:] * noise[:-1]) / noise.var()
    assert neighbors == pytest.approx(math.exp(-1 / (4 * 2.5**2)), abs=0.01)  # of a Gaussian's autocorrelation


def test_usetex_in_a_matplotlibrc_has_no_effect(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.autolayout: True\n")
    classifier(tmp_path / "a")
    command = [sys.executable, "-m", "gradalign_jax.report", str(tmp_path), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONIOENCODING": "ascii"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "out" / "overview.png").exists()


def test_the_axis_of_figure_s8_holds_every_curve(tmp_path):
    """Each method has its own grid of ε; the paper's ε50% is among the points."""
    for method, grid in (("baseline", [0.0, 0.002]), ("align", [0.0, 0.0005]), ("pgd", [0.0, 0.001, 0.02])):
        curve = {"epsilons": grid, "errors": [0.5] * len(grid)}
        classifier(tmp_path / method, method=method, curves={"pgd_linf": curve, "pgd_l2": curve})
    figure = figures_curves.draw_robustness(style.Inputs(*found_in(tmp_path)), style.LIGHT)
    linf, _, l2 = (axis.get_xlim() for axis in figure.axes)
    assert linf[0] < 0 and 0.02 < linf[1] < 0.03
    assert paper.TABLE_2["spheres", "align"]["pgd_l2"].value < l2[1] < 0.2


def test_a_figure_without_runs_says_what_it_takes(tmp_path):
    classifier(tmp_path / "a")
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    section = page[page.index('<section id="figure7"') :].partition("</section>")[0]
    assert "missing: requires an evaluation" in section
    assert not (tmp_path / "out" / "figure7.png").exists()
    assert report.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0  # again, over its own output
    assert report.main([str(tmp_path / "a"), f"--output={tmp_path / 'a'}"]) == 0
    assert report.main([str(tmp_path / "a"), f"--output={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("content", "named"), [(None, "no finished run"), ("{", "1 damaged"), ("[]", "not a JSON object")], ids=str
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
    code = "import sys; from gradalign_jax.report import __main__, figures; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
