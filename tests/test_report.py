"""The report from made-up result files."""

import csv
import importlib
import io
import json
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
from gradalign_jax.report import formats, results, statistics, tables, theirs

ROOT = Path(__file__).resolve().parents[1]
GRID = [0.0, 0.1, 0.2]


def classifier(folder, dataset="spheres", method="baseline", seed=0, **changed):
    """Writes one made-up classifier run; `changed` sets fields of its result, "config" is merged."""
    epsilon = paper.EPSILON[dataset]
    config = {
        **{"task": "classifier", "seed": seed, "method": method},
        **{"attack": {"epsilon": epsilon, "steps": 40}, "train": {"epochs": 4, "steps_per_epoch": 100}},
    }
    for key, value in changed.pop("config", {}).items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    curve = {"epsilons": GRID, "errors": [0.0, 0.4, 1.0], "threshold": 0.5, "censored": False}
    result = {
        **{"dataset": dataset, "method": method, "seed": seed, "accuracy": 1.0, "config": config},
        "epsilon_half": {"pgd_linf": 0.006, "pgd_l2": 0.1, "square_linf": None},
        **{"alpha_delta_x": 0.6, "alpha_x": 0.5, "alpha_x_label": 0.5, "alpha_x_target_label": 0.4},
        **{"alpha_x_closest_predicted": 0.4, "curves": {"pgd_linf": curve, "pgd_l2": curve}},
        **{"seconds": 36.0, "devices": ["cpu"], "versions": {"jax": "0.10"}, "notes": ["from scratch"], **changed},
    }
    return write(folder, result)


def write(folder, result):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def found_in(*folders):
    runs, damaged = results.collect(folders)
    assert not damaged
    return runs, results.classifiers(runs)


def cell_of(table, column, *key):
    (row,) = [row for row in table.rows if row.key == key]
    return row.cells[table.columns.index(column)]


# ---- the paper's numbers


def test_printed_numbers_are_read_with_their_deviation_and_rounding():
    assert paper.number("99.4±0.8") == ("99.4±0.8", 99.4, 0.8, 0.05)
    assert paper.number("100.±0.0") == ("100.±0.0", 100.0, 0.0, 0.05)
    assert paper.number(".307") == (".307", 0.307, None, 0.0005)
    assert len(paper.TABLE_2) == 18
    assert all(tuple(row) == paper.COLUMNS for row in paper.TABLE_2.values())
    assert paper.numbers("cifar10", "align")["accuracy"] == 0.811
    assert paper.numbers("squares32", "pgd") == {}


# ---- statistics


def test_z_pools_deviations_by_hand():
    values = [0.70, 0.72, 0.74]  # mean .72, sample deviation .02
    printed = paper.number(".659±.028")
    pooled = math.sqrt((2 * 0.02**2 + 4 * 0.028**2) / 6)
    expected = (0.72 - 0.659) / math.sqrt(pooled**2 * (1 / 3 + 1 / 5) + 0.0005**2 / 3)
    assert statistics.z_score(values, printed) == pytest.approx(expected, rel=1e-12)


def test_z_of_one_run_is_the_papers_deviation_and_without_one_ours():
    one = statistics.z_score([0.7], paper.number(".659±.028"))
    assert one == pytest.approx(0.041 / math.sqrt(0.028**2 * 1.2 + 0.0005**2 / 3))
    ours = statistics.z_score([0.04, 0.06], paper.number("0.036"))
    assert ours == pytest.approx(0.014 / math.sqrt(0.0002 * 0.7 + 0.0005**2 / 3))  # our variance is .0002
    assert statistics.z_score([0.04], paper.number("0.036")) is None
    assert statistics.z_score([], paper.number(".659±.028")) is None


def test_a_deviation_printed_as_zero_is_half_a_unit_of_its_digit():
    z = statistics.z_score([99.3], paper.number("99.4±0.0"))
    assert z == pytest.approx(-0.1 / math.sqrt(0.05**2 * (1 + 1 / 5) + 0.05**2 / 3))
    finer = statistics.z_score([0.010], paper.number(".008±.000"))
    assert finer == pytest.approx(0.002 / math.sqrt(0.0005**2 * (1 + 1 / 5) + 0.0005**2 / 3))


def test_pearson_is_numpys():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert statistics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert statistics.pearson([1, 2], [1, 2]) is None
    assert statistics.pearson([1, 1, 1], [1, 2, 3]) is None


def test_correlations_are_compared_after_fisher():
    expected = (math.atanh(0.9) - math.atanh(0.5)) / math.sqrt(1 / 10 + 1 / 27)
    assert statistics.z_of_correlations(0.9, 13, 0.5, 30) == pytest.approx(expected)
    assert statistics.z_of_correlations(0.9, 3, 0.5, 30) is None


# ---- tables


def test_a_cell_has_mean_deviation_number_paper_and_z(tmp_path):
    for seed, half in enumerate((0.0058, 0.0062)):
        classifier(tmp_path / f"{seed}", seed=seed, epsilon_half={"pgd_linf": half, "pgd_l2": 0.1})
    _, found = found_in(tmp_path)
    cell = cell_of(tables.table_2(found), "pgd_linf", "spheres", "baseline")
    assert (cell.ours(), cell.theirs()) == ("0.0060 ± 0.0003 (2)", "0.0058 ± .0001")
    pooled = (1 * 0.0004**2 / 2 + 4 * 0.0001**2) / 5
    expected = 0.0002 / math.sqrt(pooled * (1 / 2 + 1 / 5) + 0.00005**2 / 3)
    assert cell.z == pytest.approx(expected)
    assert cell.distance() == f"{expected:+.1f}"
    assert cell_of(tables.table_2(found), "accuracy", "spheres", "baseline").ours() == "100.0 ± 0.0 (2)"
    assert cell_of(tables.table_2(found), "square_linf", "spheres", "baseline").ours() == "missing"


def test_a_censored_epsilon_half_is_marked(tmp_path):
    for seed in range(2):
        curve = {"epsilons": GRID, "errors": [0.0, 0.2, 0.4], "threshold": 0.39, "censored": seed == 1}
        classifier(tmp_path / f"{seed}", seed=seed, curves={"pgd_l2": curve})
    _, found = found_in(tmp_path)
    table = tables.table_2(found)
    assert cell_of(table, "pgd_l2", "spheres", "baseline").ours() == "0.100 ± 0.000† (2)"
    assert cell_of(table, "pgd_linf", "spheres", "baseline").ours() == "0.0060 ± 0.0000 (2)"
    assert cell_of(tables.ratios(found), "ratio", "baseline").ours().endswith("† (2)")
    assert "†" in table.legend
    assert r"$^\dagger$" in formats.latex(table)
    marked = [line for line in csv.DictReader(io.StringIO(formats.as_csv(table))) if line["censored"] == "1"]
    assert [line["quantity"] for line in marked] == ["pgd_l2"]


def test_missing_is_shown_as_missing_and_an_absent_field_is_missing(tmp_path):
    write(tmp_path / "a", {"dataset": "mnist35", "method": "pgd"})  # nothing else
    _, found = found_in(tmp_path)
    table = tables.table_2(found)
    for row in table.rows:
        for cell in row.cells:
            assert (cell.ours(), cell.distance()) == ("missing", "–")
            assert cell.theirs() != "–"


def test_only_like_runs_are_averaged_and_the_longest_is_first(tmp_path):
    classifier(tmp_path / "short", seed=0, alpha_delta_x=0.1)
    classifier(
        tmp_path / "long", seed=0, alpha_delta_x=0.7, config={"train": {"epochs": 80, "steps_per_epoch": 10_000}}
    )
    classifier(tmp_path / "copy", seed=0, alpha_delta_x=0.2)  # the same seed again counts once
    _, found = found_in(tmp_path)
    rows = [row for row in tables.table_2(found).rows if row.key == ("spheres", "baseline")]
    assert [row.cells[4].values for row in rows] in ([(0.7,), (0.2,)], [(0.7,), (0.1,)])
    assert "400 steps of 800,000" in rows[1].note
    assert rows[0].note == ""


def test_pgd_at_another_epsilon_is_no_row_of_table_2(tmp_path):
    classifier(tmp_path / "a", method="pgd", config={"attack": {"epsilon": 0.0013}})
    _, found = found_in(tmp_path)
    assert cell_of(tables.table_2(found), "alpha_x", "spheres", "pgd").ours() == "missing"


def series(folder, dataset="mnist35"):
    """PGD runs at three ε with two seeds each; returns alignments and ε50% in the order of the table."""
    alphas, halves = [0.1, 0.2, 0.25, 0.2, 0.4, 0.38], [0.2, 0.25, 0.4, 0.3, 0.5, 0.55]
    for i, (alpha, half) in enumerate(zip(alphas, halves, strict=True)):
        at = {"attack": {"epsilon": (0.15, 0.21, 0.3)[i // 2]}}
        half = {"pgd_linf": half}
        classifier(folder / str(i), dataset, "pgd", i % 2, alpha_delta_x=alpha, epsilon_half=half, config=at)
    return alphas, halves


def test_table_3_is_pearsons_r_over_all_epsilons_and_seeds(tmp_path):
    alphas, halves = series(tmp_path)
    _, found = found_in(tmp_path)
    cell = cell_of(tables.table_3(found), "alpha_delta_x", "mnist35")
    r = np.corrcoef(alphas, halves)[0, 1]
    assert cell.values == (pytest.approx(r, abs=1e-12),)
    assert cell.ours() == f"{r:.3f} (6)"
    assert cell.z == pytest.approx((math.atanh(r) - math.atanh(0.861)) / math.sqrt(1 / 3 + 1 / 27))
    assert cell_of(tables.table_3(found), "alpha_x", "mnist35").ours() == "missing"  # does not vary
    assert cell_of(tables.table_3(found), "alpha_x", "mnist").ours() == "missing"


def test_an_evaluation_adds_what_its_run_lacks(tmp_path):
    run = classifier(tmp_path / "run", epsilon_half={"pgd_linf": 0.006, "square_linf": None})
    half = {"pgd_linf": 0.5, "square_linf": 0.007}
    curves = {"square_linf": {"epsilons": GRID, "errors": [0, 0.5, 1]}}
    there = {"task": "evaluate", "classifier": "elsewhere"}
    classifier(tmp_path / "more", epsilon_half=half, curves=curves, config=there, evaluated=str(run))
    _, (one,) = found_in(tmp_path)
    assert (one.values["pgd_linf"], one.values["square_linf"]) == (0.006, 0.007)
    assert set(one.curves) == {"pgd_linf", "pgd_l2", "square_linf"}
    assert one.evaluations[0].path == tmp_path / "more"


def test_evaluations_of_unlike_settings_are_not_averaged(tmp_path):
    for seed, queries in enumerate((50, 5000, 5000, None)):
        run = classifier(tmp_path / f"run{seed}", seed=seed, alpha_x=0.1 * seed)
        if queries is not None:
            there = {"task": "evaluate", "classifier": str(run), "evaluate": {"square_queries": queries}}
            half = {"square_linf": queries / 1e6}
            classifier(tmp_path / f"more{seed}", seed=seed, epsilon_half=half, config=there, evaluated=str(run))
    _, found = found_in(tmp_path)
    rows = [row for row in tables.table_2(found).rows if row.key == ("spheres", "baseline")]
    column = paper.COLUMNS.index("square_linf")
    measured = {row.cells[column].values: row for row in rows}
    assert set(measured) == {(0.005, 0.005), (0.00005,)}
    assert len(measured[0.005, 0.005].cells[paper.COLUMNS.index("alpha_x")].values) == 3  # the bare seed joins
    assert "50 queries of 5,000" in measured[0.00005,].note
    assert "queries" not in measured[0.005, 0.005].note


DATASETS = (*paper.DATASETS, "squares32")


@pytest.mark.parametrize("dataset", DATASETS)
def test_values_of_the_paper_are_those_of_its_configs(dataset):
    module = importlib.import_module(f"configs.{dataset}")
    for task in (*paper.METHODS, "evaluate", "vrgan", "gan", "project"):
        try:
            config = module.get_config(task)
        except ValueError:
            continue  # the data set has no such task
        flat = dict(results.flatten(config.to_dict()))
        wanted = theirs.values(dataset, config.task)
        assert config.task == "evaluate" or wanted.keys() <= flat.keys()  # an evaluation has no keys of training
        for key in wanted.keys() & flat.keys():
            assert flat[key] == pytest.approx(wanted[key]), (task, key)
        run = results.Run(ROOT, json.loads(json.dumps({"dataset": dataset, "config": config.to_dict()})))
        assert not [words for words in results.departures(run) if "." in words.split()[0]]


def test_other_values_than_the_papers_are_told(tmp_path):
    changed = {
        **{"train": {"batch_size": 16}, "optimizer": {"b1": 0.5}, "align": {"weight": 1.0}},
        **{"attack": {"step_size": 0.01, "loss": "cross_entropy"}},
        **{"validate": {"every_epochs": 5, "images": 100, "epsilons": [0.002, 0.02]}},
        "evaluate": {"linf_epsilons": [0.001, 0.3], "l2_epsilons": [0.5]},
    }
    classifier(tmp_path / "a", method="align", config=changed)
    classifier(tmp_path / "b", method="baseline", config=changed)
    _, (align, baseline) = found_in(tmp_path)
    told = results.departures(align.run)
    for words in (
        *("train.batch_size 16, not 50", "optimizer.b1 0.5, not 0.0", "align.weight 1.0, not 0.1"),
        *("attack.step_size 0.01, not 0.002", "attack.loss cross_entropy, not margin"),
        *("validate.every_epochs 5, not 1", "validate.images 100, not all", "validate.epsilons: 2 of 6 values"),
        *("evaluate.linf_epsilons: other values", "evaluate.l2_epsilons: other values"),
    ):
        assert words in told
    assert [words for words in told if words not in results.departures(baseline.run)] == ["align.weight 1.0, not 0.1"]


@pytest.mark.parametrize(
    ("source", "told"),
    [("", "from scratch"), ("runs/a/classifier.safetensors", "from another run's weights"), ("hf:timm/r18", "")],
)
def test_where_the_weights_come_from_is_told(tmp_path, source, told):
    classifier(tmp_path / "a", "mnist35", config={"model": {"pretrained": source}})
    words = [told for told in results.departures(found_in(tmp_path)[1][0].run) if "weights" in told]
    assert words == ([f"{told}, not ImageNet weights"] if told else [])


def test_generators_fill_table_1_and_section_3_2(tmp_path):
    for seed, similarity in enumerate((0.85, 0.89)):
        norms = {"x": {"0": 1.0, "1": 1.3}, "delta": {"0": 0.3, "1": 0.32}}
        result = {"dataset": "spheres", "task": "vrgan", "seed": seed, "similarity": similarity, "norms": norms}
        write(tmp_path / str(seed), {**result, "similarity_by_class": {"0": 0.8, "1": 0.9}})
    runs, found = found_in(tmp_path)
    assert not found
    assert cell_of(tables.table_1(runs), "delta", "1").ours() == "0.320 ± 0.000 (2)"
    assert cell_of(tables.table_1(runs), "similarity", "0").values == (0.8, 0.8)
    assert cell_of(tables.table_1(runs), "other", "0").ours() == "missing"
    short = {"task": "vrgan", "train": {"epochs": 1, "steps_per_epoch": 2}}
    full = {"task": "vrgan", "train": {"epochs": 80, "steps_per_epoch": 10_000}}
    for name, config, similarity in (("short", short, 0.1), ("full", full, 0.88)):
        result = {"dataset": "squares32", "task": "project", "similarity": {"mean": similarity}, "config": config}
        write(tmp_path / name, {**result, "dataset": "squares", "task": "vrgan"})
    longest, _ = found_in(tmp_path)
    assert cell_of(tables.similarities(longest), "similarity", "squares").values == (0.88,)
    cell = cell_of(tables.similarities(runs), "similarity", "spheres")
    pooled = (0.0008 + 4 * 0.019**2) / 5
    assert cell.z == pytest.approx(-0.004 / math.sqrt(pooled * 0.7 + 0.0005**2 / 3))


def test_an_evaluation_of_a_run_that_is_not_there_stands_alone(tmp_path):
    trained = {"attack": {"epsilon": 0.0013}, "train": {"epochs": 80, "steps_per_epoch": 10_000}}
    there = {"task": "evaluate", "attack": {"epsilon": 0.005}}
    classifier(tmp_path, method="pgd", config=there, evaluated="gone", evaluated_config=trained)
    _, (one,) = found_in(tmp_path)
    assert (one.epsilon, one.as_in_table_2, results.departures(one.run)) == (0.0013, False, [])


def test_evaluations_that_stand_alone_are_averaged_over_seeds(tmp_path):
    for seed, alpha in enumerate((0.6, 0.7)):
        own = {"seed": seed, "train": {"epochs": 80, "steps_per_epoch": 10_000}, "digest": f"of weights {seed}"}
        there = {"config": {"task": "evaluate"}, "evaluated": f"gone{seed}", "evaluated_config": own}
        classifier(tmp_path / str(seed), seed=seed, alpha_x=alpha, **there)
    _, found = found_in(tmp_path)
    assert cell_of(tables.table_2(found), "alpha_x", "spheres", "baseline").values == (0.6, 0.7)


# ---- files


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
