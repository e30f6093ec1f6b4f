"""The report's tables from made-up result files: cells, z, which runs are one row, and what is told of them."""

import csv
import importlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.report import formats, groups, runs, statistics, tables, theirs
from gradalign_jax.report.departures import departures
from made_up_runs import GRID, cell_of, classifier, found_in, series, write

ROOT = Path(__file__).resolve().parents[1]


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
        flat = dict(runs.flatten(config.to_dict()))
        wanted = theirs.values(dataset, config.task)
        assert config.task == "evaluate" or wanted.keys() <= flat.keys()  # an evaluation has no keys of training
        for key in wanted.keys() & flat.keys():
            assert flat[key] == pytest.approx(wanted[key]), (task, key)
        run = runs.Run(ROOT, json.loads(json.dumps({"dataset": dataset, "config": config.to_dict()})))
        assert not [words for words in departures(run) if "." in words.split()[0]]


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
    told = departures(align.run)
    for words in (
        *("train.batch_size 16, not 50", "optimizer.b1 0.5, not 0.0", "align.weight 1.0, not 0.1"),
        *("attack.step_size 0.01, not 0.002", "attack.loss cross_entropy, not margin"),
        *("validate.every_epochs 5, not 1", "validate.images 100, not all", "validate.epsilons: 2 of 6 values"),
        *("evaluate.linf_epsilons: other values", "evaluate.l2_epsilons: other values"),
    ):
        assert words in told
    assert [words for words in told if words not in departures(baseline.run)] == ["align.weight 1.0, not 0.1"]


@pytest.mark.parametrize(
    ("source", "told"),
    [("", "from scratch"), ("runs/a/classifier.safetensors", "from another run's weights"), ("hf:timm/r18", "")],
)
def test_where_the_weights_come_from_is_told(tmp_path, source, told):
    classifier(tmp_path / "a", "mnist35", config={"model": {"pretrained": source}})
    words = [told for told in departures(found_in(tmp_path)[1][0].run) if "weights" in told]
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
    assert (one.epsilon, one.as_in_table_2, departures(one.run)) == (0.0013, False, [])


def test_evaluations_that_stand_alone_are_averaged_over_seeds(tmp_path):
    for seed, alpha in enumerate((0.6, 0.7)):
        own = {"seed": seed, "train": {"epochs": 80, "steps_per_epoch": 10_000}, "digest": f"of weights {seed}"}
        there = {"config": {"task": "evaluate"}, "evaluated": f"gone{seed}", "evaluated_config": own}
        classifier(tmp_path / str(seed), seed=seed, alpha_x=alpha, **there)
    _, found = found_in(tmp_path)
    assert cell_of(tables.table_2(found), "alpha_x", "spheres", "baseline").values == (0.6, 0.7)


# ---- runs of unlike settings


FULL = {"train": {"epochs": 80, "steps_per_epoch": 10_000}}


def rows_of(found, *key):
    return [row for row in tables.table_2(found).rows if row.key == key]


def test_what_was_measured_by_the_generator_that_trained_is_a_row_of_its_own(tmp_path):
    for seed, same in enumerate((False, True)):
        at = {"evaluate": {"same_generator": same}}
        classifier(tmp_path / f"{seed}", "mnist35", "align", seed, alpha_delta_x=0.95 if same else 0.6, config=at)
    column = paper.COLUMNS.index("alpha_delta_x")
    rows = rows_of(found_in(tmp_path)[1], "mnist35", "align")
    assert {row.cells[column].values: "measured by the Δ̂x that trained it" in row.note for row in rows} == {
        (0.6,): False,
        (0.95,): True,
    }


def test_a_row_tells_how_its_estimate_differs(tmp_path):
    """Through the store to the GAN behind it; of a run that is not there, that it is not."""
    gan = write(
        tmp_path / "gan", {"dataset": "mnist", "task": "gan", "config": {"gan": {"iterations": 1000, "width": 32}}}
    )
    project = {"project": {"generator": str(gan), "steps": [600, 150]}, "data": {"limit": 150}}
    store = write(tmp_path / "store", {"dataset": "mnist", "task": "project", "config": project})
    sources = {"delta_x": {"store": str(store)}, "evaluate": {"store": "runs/gone/store"}}
    classifier(tmp_path / "align", "mnist", "align", config=sources)
    (row,) = rows_of(found_in(tmp_path)[1], "mnist", "align")
    assert "Δ̂x that trains: 150 images a split, GAN: 1,000 steps of 125,000, gan.width 32, not 256" in row.note
    assert "Δ̂x that measures: of a run that is not among these" in row.note


def test_the_projection_and_the_evaluation_that_did_most_are_shown(tmp_path):
    for name, steps, similarity in (("a", [6, 4], 0.1), ("b", [600, 150], 0.66)):
        config = {"task": "project", "project": {"steps": steps}}
        result = {"dataset": "squares32", "task": "project", "pairs": 8, "similarity": similarity, "config": config}
        write(tmp_path / name, result)
    assert cell_of(tables.similarities(found_in(tmp_path)[0]), "similarity", "squares32").values == (0.66,)
    for method, hours in (("baseline", 2), ("pgd", 4)):
        for name, images, factor, cw in (("smoke", 8, 0.01, 0), ("whole", 0, 1, 0), ("cw", 0, 9, 50)):
            at = {"task": "evaluate", "evaluate": {"images": images, "square_queries": 5000, "cw_images": cw}}
            classifier(tmp_path / f"{method}_{name}", method=method, seconds=3600 * hours * factor, config=at)
    assert cell_of(tables.table_s1(found_in(tmp_path)[0]), "square", "spheres").values == (2, 4)


def test_of_equally_long_runs_those_like_the_papers_come_first(tmp_path):
    classifier(tmp_path / "a", "mnist35", "pgd", alpha_x=0.1, config={**FULL, "attack": {"steps": 10}})
    for seed in range(3):
        classifier(tmp_path / f"b{seed}", "mnist35", "pgd", seed, alpha_x=0.4, config=FULL)
    found = found_in(tmp_path)[1]
    assert [c.values["alpha_x"] for c in groups.longest(found, "mnist35", "pgd")] == [0.4] * 3
    assert "10 attack steps of 40" in rows_of(found, "mnist35", "pgd")[1].note


def test_where_the_longest_lack_a_number_the_next_have_it(tmp_path):
    classifier(tmp_path / "long", config=FULL)
    classifier(tmp_path / "short", epsilon_half={"square_linf": 0.0067})
    found = found_in(tmp_path)[1]
    steps = [
        groups.longest(found, "spheres", "baseline", lambda c, n=name: c.values[n])[0].run.path.name
        for name in ("pgd_linf", "square_linf")
    ]
    assert steps == ["long", "short"]
    assert groups.longest(found, "spheres", "baseline", lambda c: False) == ()


def test_a_small_deviation_keeps_its_first_digit():
    cell = tables.Cell((0.00577, 0.00581), paper.number("0.0058±.0001"))
    assert cell.ours() == "0.0058 ± 3e−05 (2)"


def test_each_number_is_from_whoever_measured_most_of_it(tmp_path):
    run = classifier(tmp_path / "run", accuracy=0.9, config={**FULL, "evaluate": {"images": 300}})
    for name, images, queries, half in (("a", 20, 50, 0.02), ("b", 0, 5000, 0.008)):
        curve = {"epsilons": GRID, "errors": [0.0, 0.5, 1.0], "queries": queries, "images": images or 10_000}
        at = {"task": "evaluate", "evaluate": {"images": images, "square_queries": queries}}
        halves = {"pgd_linf": 0.1, "pgd_l2": 0.1, "square_linf": half}
        classifier(
            tmp_path / f"run_{name}",
            accuracy=0.8,
            epsilon_half=halves,
            curves={"square_linf": curve},
            config=at,
            evaluated=str(run),
        )
    (one,) = found_in(tmp_path)[1]
    assert (one.values["accuracy"], one.values["square_linf"]) == (80, 0.008)
    assert one.curves["square_linf"]["queries"] == 5000
    (row,) = rows_of([one], "spheres", "baseline")
    assert row.note == ""  # the 300 images are nowhere in it


def test_no_two_rows_of_a_table_read_alike(tmp_path):
    for i, train in enumerate(({"epochs": 1, "steps_per_epoch": 400}, {"epochs": 2, "steps_per_epoch": 400})):
        classifier(tmp_path / f"{i}", config={"train": train})
    for i, epochs in enumerate((3, 150)):
        more = {"train": {"epochs": epochs, "steps_per_epoch": 0}, "data": {"limit": 150}}
        classifier(tmp_path / f"limited{i}", "mnist", "align", config=more)
    runs, found = found_in(tmp_path)
    for table in tables.all_tables(runs, found):
        named = [(row.label, row.note) for row in table.rows]
        assert len(named) == len(set(named)), table.name
        text = formats.latex(table)
        assert all(formats.tex(row.note) in text for row in table.rows)
        assert formats.tex(table.legend) in text


def test_another_model_is_told_and_a_file_is_one_file_from_wherever_it_is_named(tmp_path):
    classifier(tmp_path / "a", config={**FULL, "model": {"name": "mlp", "hidden": [32]}})
    assert departures(found_in(tmp_path)[1][0].run) == ["model.hidden (32,), not (1000, 1000)"]
    for seed, path in enumerate(("weights/r18.safetensors", "/home/of/one/weights/r18.safetensors")):
        classifier(tmp_path / f"m{seed}", "mnist35", seed=seed, config={"model": {"pretrained": path}})
    (row,) = rows_of(found_in(tmp_path)[1], "mnist35", "baseline")
    assert len(row.cells[0].values) == 2
