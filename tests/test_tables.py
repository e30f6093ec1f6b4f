"""The report's tables from made-up result files: cells, which runs share a row, and their notes."""

import csv
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.config_keys import flatten
from gradalign_jax.report import cells, formats, groups, paper_settings, runs, statistics, tables
from gradalign_jax.report.differences import DESCRIBED, IDENTITY, WITHOUT_EFFECT, differences
from gradalign_jax.report.tables_classifiers import accuracy_by_class, table_2, table_3, theorem_2
from gradalign_jax.report.tables_generators import norms, similarities, success, table_1
from gradalign_jax.report.tables_setup import table_s1
from gradalign_jax.report.tables_suite import robustness_by_suite
from gradalign_jax.report.tables_theory import theory
from gradalign_jax.report.text import as_latex
from made_up_runs import GRID, cell_of, classifier, found_in, series, suite, write

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


# ---- tables


def test_a_cell_has_mean_deviation_number_paper_and_z(tmp_path):
    for seed, half in enumerate((0.0058, 0.0062)):
        classifier(tmp_path / f"{seed}", seed=seed, epsilon_half={"pgd_linf": half, "pgd_l2": 0.1})
    _, found = found_in(tmp_path)
    cell = cell_of(table_2(found), "pgd_linf", "spheres", "baseline")
    assert (cell.measured_text(), cell.paper_text()) == ("0.0060 ± 0.0003 (2)", "0.0058 ± .0001")
    assert cell.z == statistics.z_score([0.0058, 0.0062], paper.number("0.0058±.0001"))
    assert cell.z_text() == f"{cell.z:+.1f}"
    assert cell_of(table_2(found), "accuracy", "spheres", "baseline").measured_text() == "100.0 ± 0.0 (2)"
    assert cell_of(table_2(found), "square_linf", "spheres", "baseline").measured_text() == "missing"


def test_a_censored_epsilon_half_is_marked(tmp_path):
    for seed in range(2):
        curve = {"epsilons": GRID, "errors": [0.0, 0.2, 0.4], "threshold": 0.39, "censored": seed == 1}
        classifier(tmp_path / f"{seed}", seed=seed, curves={"pgd_l2": curve})
    _, found = found_in(tmp_path)
    table = table_2(found)
    assert cell_of(table, "pgd_l2", "spheres", "baseline").measured_text() == "0.100 ± 0.000† (2)"
    assert cell_of(table, "pgd_linf", "spheres", "baseline").measured_text() == "0.0060 ± 0.0000 (2)"
    assert cell_of(theorem_2(found), "ratio", "baseline").measured_text().endswith("† (2)")
    assert "†" in table.legend
    assert r"$^\dagger$" in formats.latex(table)
    marked = [line for line in csv.DictReader(io.StringIO(formats.as_csv(table))) if line["censored"] == "1"]
    assert [line["quantity"] for line in marked] == ["pgd_l2"]


def test_missing_is_shown_as_missing_and_an_absent_field_is_missing(tmp_path):
    write(tmp_path / "a", {"dataset": "mnist35", "method": "pgd"})  # nothing else
    _, found = found_in(tmp_path)
    table = table_2(found)
    for row in table.rows:
        for cell in row.cells:
            assert (cell.measured_text(), cell.z_text()) == ("missing", "–")
            assert cell.paper_text() != "–"


def test_only_comparable_runs_are_averaged_and_the_longest_is_first(tmp_path):
    classifier(tmp_path / "short", seed=0, alpha_delta_x=0.1)
    classifier(
        tmp_path / "long", seed=0, alpha_delta_x=0.7, config={"train": {"epochs": 80, "steps_per_epoch": 10_000}}
    )
    classifier(tmp_path / "copy", seed=0, alpha_delta_x=0.2)  # the same seed again counts once
    _, found = found_in(tmp_path)
    rows = [row for row in table_2(found).rows if row.key == ("spheres", "baseline")]
    assert [row.cells[4].values for row in rows] in ([(0.7,), (0.2,)], [(0.7,), (0.1,)])
    assert "400 of 800,000 steps" in rows[1].note
    assert rows[0].note == ""


def test_pgd_at_another_epsilon_is_not_in_table_2(tmp_path):
    classifier(tmp_path / "a", method="pgd", config={"attack": {"epsilon": 0.0013}})
    _, found = found_in(tmp_path)
    assert cell_of(table_2(found), "alpha_x", "spheres", "pgd").measured_text() == "missing"


def test_table_3_is_pearsons_r_over_all_epsilons_and_seeds(tmp_path):
    alphas, halves = series(tmp_path)
    _, found = found_in(tmp_path)
    cell = cell_of(table_3(found), "alpha_delta_x", "mnist35")
    r = np.corrcoef(alphas, halves)[0, 1]
    assert cell.values == (pytest.approx(r, abs=1e-12),)
    assert cell.measured_text() == f"{r:.3f} (6)"
    assert cell.z is None  # three ε
    assert cell_of(table_3(found), "alpha_x", "mnist35").measured_text() == "missing"  # does not vary
    assert cell_of(table_3(found), "alpha_x", "mnist").measured_text() == "missing"


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


def test_evaluations_of_different_settings_are_not_averaged(tmp_path):
    for seed, queries in enumerate((50, 5000, 5000, None)):
        run = classifier(tmp_path / f"run{seed}", seed=seed, alpha_x=0.1 * seed)
        if queries is not None:
            there = {"task": "evaluate", "classifier": str(run), "evaluate": {"square_queries": queries}}
            half = {"square_linf": queries / 1e6}
            classifier(tmp_path / f"more{seed}", seed=seed, epsilon_half=half, config=there, evaluated=str(run))
    _, found = found_in(tmp_path)
    rows = [row for row in table_2(found).rows if row.key == ("spheres", "baseline")]
    column = paper.COLUMNS.index("square_linf")
    measured = {row.cells[column].values: row for row in rows}
    assert set(measured) == {(0.005, 0.005), (0.00005,)}
    assert len(measured[0.005, 0.005].cells[paper.COLUMNS.index("alpha_x")].values) == 3  # the bare seed joins
    assert "50 of 5,000 queries" in measured[0.00005,].note
    assert "queries" not in measured[0.005, 0.005].note


DATASETS = (*paper.DATASETS, "squares32")
TASKS = (*paper.METHODS, "evaluate", "vrgan", "gan", "project")


def config_of(dataset, task):
    """Return a config, None where the data set does not have the task."""
    try:
        return importlib.import_module(f"configs.{dataset}").get_config(task)
    except ValueError:
        return None


@pytest.mark.parametrize("dataset", DATASETS)
def test_values_of_the_paper_are_those_of_its_configs(dataset):
    for config in filter(None, (config_of(dataset, task) for task in TASKS)):
        flat = dict(flatten(config.to_dict()))
        wanted = paper_settings.values(dataset, config.task)
        missing = wanted.keys() - flat.keys()
        assert config.task == "evaluate" or not missing  # an evaluation has no keys of training
        for key in wanted.keys() & flat.keys():
            assert flat[key] == pytest.approx(wanted[key]), (config.task, key)
        run = runs.Run(ROOT, json.loads(json.dumps({"dataset": dataset, "config": config.to_dict()})))
        assert not [words for words in differences(run) if "." in words.split()[0]]


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_config_key_is_compared_with_the_paper_or_known_to_change_nothing(dataset):
    """Every key is described, has the paper's value, identifies the row, or is listed as without effect."""
    for config in filter(None, (config_of(dataset, task) for task in TASKS)):
        keys = set(flat := dict(flatten(config.to_dict())))
        rest = keys - DESCRIBED - IDENTITY - WITHOUT_EFFECT - paper_settings.values(dataset, config.task).keys()
        assert not rest, (config.task, {key: flat[key] for key in rest})
    assert not DESCRIBED & WITHOUT_EFFECT | DESCRIBED & IDENTITY | WITHOUT_EFFECT & IDENTITY


CHANGES = (
    ("mnist", "project", {"project.eps": 1e-8}, "project.eps 1e-08, not 6.4e-07"),
    ("mnist", "project", {"project.skip_own_class": True}, "project.skip_own_class True, not False"),
    ("mnist", "project", {"precision.projection": "bfloat16"}, "projection in bfloat16"),
    ("mnist", "gan", {"gan.use_validation": False}, "gan.use_validation False, not True"),
    ("mnist", "gan", {"gan.ema_decay": 0.999}, "gan.ema_decay 0.999, not 0.9999"),
    ("mnist", "gan", {"gan.ema_start": 10}, "gan.ema_start 10, not 1000"),
    ("mnist", "gan", {"precision.training": "bfloat16"}, "training in bfloat16"),
    ("mnist35", "vrgan", {"generator.downsamplings": 4}, "generator.downsamplings 4, not 2"),
    ("mnist35", "vrgan", {"precision.training": "bfloat16"}, "training in bfloat16"),
    ("mnist35", "align", {"delta_x.name": "centroid"}, "Δx for training by centroid"),
    ("mnist35", "align", {"evaluate.delta_x": "exact"}, "Δx for measuring by exact"),
    ("spheres", "baseline", {"model.input_size": 50}, "model.input_size 50, not 500"),
)


@pytest.mark.parametrize(("dataset", "task", "changes", "words"), CHANGES, ids=[c[-1] for c in CHANGES])
def test_a_changed_key_is_a_difference(dataset, task, changes, words):
    config = config_of(dataset, task)
    result = {"dataset": dataset, "method": config.get("method")}
    assert words not in differences(runs.Run(ROOT, {**result, "config": config.to_dict()}))
    config.update_from_flattened_dict(changes)
    assert words in differences(runs.Run(ROOT, {**result, "config": config.to_dict()}))


@pytest.mark.parametrize("task", ["gan", "vrgan"])
def test_the_precision_of_generators_is_the_recorded_one(task):
    config = config_of("squares32", task).to_dict()
    recorded = {"dataset": "squares32", "config": config, "precision": {"training": "tf32", "reported": "float32"}}
    assert "training in TF32" in differences(runs.Run(ROOT, recorded))
    recorded["precision"] = {"training": "float32"}  # as a CPU makes of it
    assert not [words for words in differences(runs.Run(ROOT, recorded)) if "TF32" in words]


def test_an_absent_key_counts_as_its_default_of_then():
    """Before the key, Carlini-Wagner's learning rate was .02 on every data set, ten times the authors' on Spheres."""
    config = {"task": "classifier", "method": "pgd", "evaluate": {"cw_images": 8}, "attack": {"epsilon": 0.005}}
    found = differences(runs.Run(ROOT, {"dataset": "spheres", "method": "pgd", "config": config}))
    assert found == ["evaluate.cw_learning_rate 0.02, not 0.002"]
    assert not differences(runs.Run(ROOT, {"dataset": "mnist", "method": "pgd", "config": config}))
    config["evaluate"]["cw_learning_rate"] = 0.002
    assert not differences(runs.Run(ROOT, {"dataset": "spheres", "method": "pgd", "config": config}))


def test_runs_from_before_and_after_a_key_share_a_row(tmp_path):
    later = {
        "attack": {"loss": "margin"},
        "evaluate": {"square_queries": 0, "square_images": 0, "generator": "", "store": "", "delta_x": ""},
        "validate": {"every_epochs": 1, "first_epoch": 0},
    }
    classifier(tmp_path / "old", seed=0, config={"evaluate": {}, "validate": {}})
    classifier(tmp_path / "old2", seed=1, config={"evaluate": {"square_queries": 0}, "validate": {"images": 0}})
    classifier(tmp_path / "new", seed=2, config=later)
    (row,) = rows_of(found_in(tmp_path)[1], "spheres", "baseline")
    assert len(row.cells[0].values) == 3


def test_other_values_than_the_papers_are_described(tmp_path):
    changed = {
        **{"train": {"batch_size": 16}, "optimizer": {"b1": 0.5}, "align": {"weight": 1.0}},
        **{"attack": {"step_size": 0.01, "loss": "cross_entropy"}},
        **{"validate": {"every_epochs": 5, "images": 100, "epsilons": [0.002, 0.02]}},
        "evaluate": {"linf_epsilons": [0.001, 0.3], "l2_epsilons": [0.5]},
    }
    classifier(tmp_path / "a", method="align", config=changed)
    classifier(tmp_path / "b", method="baseline", config=changed)
    _, (align, baseline) = found_in(tmp_path)
    found = differences(align.run)
    for words in (
        *("train.batch_size 16, not 50", "optimizer.b1 0.5, not 0.0", "align.weight 1.0, not 0.1"),
        *("attack.step_size 0.01, not 0.002", "attack.loss cross_entropy, not margin"),
        *("validate.every_epochs 5, not 1", "validate.images 100, not all", "validate.epsilons: 2 of 6 values"),
        *("evaluate.linf_epsilons: other values", "evaluate.l2_epsilons: other values"),
    ):
        assert words in found
    assert [words for words in found if words not in differences(baseline.run)] == ["align.weight 1.0, not 0.1"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [("", "from scratch"), ("runs/a/classifier.safetensors", "from another run's weights"), ("hf:timm/r18", "")],
)
def test_where_the_weights_come_from_is_described(tmp_path, source, expected):
    classifier(tmp_path / "a", "mnist35", config={"model": {"pretrained": source}})
    words = [words for words in differences(found_in(tmp_path)[1][0].run) if "weights" in words]
    assert words == ([f"{expected}, not from ImageNet weights"] if expected else [])


def test_generators_fill_table_1_and_section_3_2(tmp_path):
    for seed, similarity in enumerate((0.85, 0.89)):
        norms = {"x": {"0": 1.0, "1": 1.3}, "delta": {"0": 0.3, "1": 0.32}}
        result = {"dataset": "spheres", "task": "vrgan", "seed": seed, "similarity": similarity, "norms": norms}
        write(tmp_path / str(seed), {**result, "similarity_by_class": {"0": 0.8, "1": 0.9}})
    runs, found = found_in(tmp_path)
    assert not found
    assert cell_of(table_1(runs), "delta", "1").measured_text() == "0.320 ± 0.000 (2)"
    assert cell_of(table_1(runs), "similarity", "0").values == (0.8, 0.8)
    assert cell_of(table_1(runs), "other", "0").measured_text() == "missing"
    short = {"task": "vrgan", "train": {"epochs": 1, "steps_per_epoch": 2}}
    full = {"task": "vrgan", "train": {"epochs": 80, "steps_per_epoch": 10_000}}
    for name, config, similarity in (("short", short, 0.1), ("full", full, 0.88)):
        result = {"dataset": "squares32", "task": "project", "similarity": {"mean": similarity}, "config": config}
        write(tmp_path / name, {**result, "dataset": "squares", "task": "vrgan"})
    longest, _ = found_in(tmp_path)
    assert cell_of(similarities(longest), "similarity", "squares").values == (0.88,)
    cell = cell_of(similarities(runs), "similarity", "spheres")
    assert cell.z == statistics.z_score([0.85, 0.89], paper.number(".874±.019"))


def test_an_evaluation_of_a_run_that_is_not_there_stands_alone(tmp_path):
    trained = {"attack": {"epsilon": 0.0013}, "train": {"epochs": 80, "steps_per_epoch": 10_000}}
    there = {"task": "evaluate", "attack": {"epsilon": 0.005}}
    classifier(tmp_path, method="pgd", config=there, evaluated="gone", evaluated_config=trained)
    _, (one,) = found_in(tmp_path)
    assert (one.epsilon, one.has_table_2_epsilon, differences(one.run)) == (0.0013, False, [])


def test_evaluations_that_stand_alone_are_averaged_over_seeds(tmp_path):
    for seed, alpha in enumerate((0.6, 0.7)):
        own = {"seed": seed, "train": {"epochs": 80, "steps_per_epoch": 10_000}, "digest": f"of weights {seed}"}
        there = {"config": {"task": "evaluate"}, "evaluated": f"gone{seed}", "evaluated_config": own}
        classifier(tmp_path / str(seed), seed=seed, alpha_x=alpha, **there)
    _, found = found_in(tmp_path)
    assert cell_of(table_2(found), "alpha_x", "spheres", "baseline").values == (0.6, 0.7)


# ---- runs of different settings


FULL = {"train": {"epochs": 80, "steps_per_epoch": 10_000}}


def rows_of(found, *key):
    return [row for row in table_2(found).rows if row.key == key]


def test_measuring_by_the_generator_that_trained_is_a_separate_row(tmp_path):
    for seed, same in enumerate((False, True)):
        at = {"evaluate": {"same_generator": same}}
        classifier(tmp_path / f"{seed}", "mnist35", "align", seed, alpha_delta_x=0.95 if same else 0.6, config=at)
    column = paper.COLUMNS.index("alpha_delta_x")
    rows = rows_of(found_in(tmp_path)[1], "mnist35", "align")
    assert {row.cells[column].values: "measured by the Δ̂x that trained it" in row.note for row in rows} == {
        (0.6,): False,
        (0.95,): True,
    }


def test_a_row_notes_how_its_estimate_differs(tmp_path):
    """Through the store to the GAN behind it, or that the run is not in the report."""
    gan = write(
        tmp_path / "gan", {"dataset": "mnist", "task": "gan", "config": {"gan": {"iterations": 1000, "width": 32}}}
    )
    project = {"project": {"generator": str(gan), "steps": [600, 150]}, "data": {"limit": 150}}
    store = write(tmp_path / "store", {"dataset": "mnist", "task": "project", "config": project})
    sources = {"delta_x": {"store": str(store)}, "evaluate": {"store": "runs/gone/store"}}
    classifier(tmp_path / "align", "mnist", "align", config=sources)
    (row,) = rows_of(found_in(tmp_path)[1], "mnist", "align")
    assert "Δ̂x for training: 150 images in each split, GAN: 1,000 of 125,000 steps, gan.width 32, not 256" in row.note
    assert "Δ̂x for measuring: from a run that is not in this report" in row.note


def test_the_projection_and_the_evaluation_that_did_most_are_shown(tmp_path):
    for name, steps, similarity in (("a", [6, 4], 0.1), ("b", [600, 150], 0.66)):
        config = {"task": "project", "project": {"steps": steps}}
        result = {"dataset": "squares32", "task": "project", "pairs": 8, "similarity": similarity, "config": config}
        write(tmp_path / name, result)
    assert cell_of(similarities(found_in(tmp_path)[0]), "similarity", "squares32").values == (0.66,)
    for method, hours in (("baseline", 2), ("pgd", 4)):
        for name, images, factor, cw in (("smoke", 8, 0.01, 0), ("whole", 0, 1, 0), ("cw", 0, 9, 50)):
            at = {"task": "evaluate", "evaluate": {"images": images, "square_queries": 5000, "cw_images": cw}}
            classifier(tmp_path / f"{method}_{name}", method=method, seconds=3600 * hours * factor, config=at)
    assert cell_of(table_s1(found_in(tmp_path)[0]), "spheres", "hours_square").values == (2, 4)


def test_of_equally_long_runs_those_with_fewest_differences_come_first(tmp_path):
    classifier(tmp_path / "a", "mnist35", "pgd", alpha_x=0.1, config={**FULL, "attack": {"steps": 10}})
    for seed in range(3):
        classifier(tmp_path / f"b{seed}", "mnist35", "pgd", seed, alpha_x=0.4, config=FULL)
    found = found_in(tmp_path)[1]
    assert [c.values["alpha_x"] for c in groups.longest_trained(found, "mnist35", "pgd")] == [0.4] * 3
    assert "10 of 40 attack steps" in rows_of(found, "mnist35", "pgd")[1].note


def test_where_the_longest_lack_a_number_the_next_are_shown(tmp_path):
    classifier(tmp_path / "long", config=FULL)
    classifier(tmp_path / "short", epsilon_half={"square_linf": 0.0067})
    found = found_in(tmp_path)[1]
    steps = [
        groups.longest_trained(found, "spheres", "baseline", lambda c, n=name: c.values[n])[0].run.path.name
        for name in ("pgd_linf", "square_linf")
    ]
    assert steps == ["long", "short"]
    assert groups.longest_trained(found, "spheres", "baseline", lambda c: False) == ()


def test_a_small_deviation_keeps_its_first_digit():
    cell = cells.Cell((0.00577, 0.00581), paper.number("0.0058±.0001"))
    assert cell.measured_text() == "0.0058 ± 3e−05 (2)"


def test_each_number_is_from_the_run_that_measured_most_of_it(tmp_path):
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


def test_no_two_rows_of_a_table_read_the_same(tmp_path):
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
        assert all(as_latex(row.note) in text for row in table.rows)
        assert as_latex(table.legend) in text


def test_another_model_is_described_and_a_file_is_one_file_by_any_path(tmp_path):
    classifier(tmp_path / "a", config={**FULL, "model": {"name": "mlp", "hidden": [32]}})
    assert differences(found_in(tmp_path)[1][0].run) == ["model.hidden (32,), not (1000, 1000)"]
    for seed, path in enumerate(("weights/r18.safetensors", "/home/user/weights/r18.safetensors")):
        classifier(tmp_path / f"m{seed}", "mnist35", seed=seed, config={"model": {"pretrained": path}})
    (row,) = rows_of(found_in(tmp_path)[1], "mnist35", "baseline")
    assert len(row.cells[0].values) == 2


# ---- censoring, section 3.2, A.7, Table S1


def test_table_3_marks_censored_series(tmp_path):
    for i, epsilon in enumerate((0.1, 0.2, 0.3, 0.4)):
        curve = {"epsilons": GRID, "errors": [0.0, 0.2, 0.4], "threshold": 0.39, "censored": i == 3}
        half, at = {"pgd_linf": 0.1 * i + 0.01 * i**2}, {"attack": {"epsilon": epsilon}}
        alphas = {"alpha_delta_x": 0.1 * i, "alpha_x": None if i == 3 else 0.1 * i}
        run = {"epsilon_half": half, "curves": {"pgd_linf": curve}, "config": at}
        classifier(tmp_path / str(i), "mnist35", "pgd", **alphas, **run)
    table = table_3(found_in(tmp_path)[1])
    marked, unmarked = (cell_of(table, alpha, "mnist35") for alpha in paper.T3_COLUMNS)
    assert "†" in marked.measured_text()
    assert marked.z is not None
    assert "†" not in unmarked.measured_text()  # the censored classifier has no such alignment
    assert "†" in table.legend


def test_accuracy_by_class_is_counted_from_images(tmp_path):
    run = classifier(tmp_path / "run", "squares", "align")
    at = {"task": "evaluate", "classifier": str(run)}
    curves = {"pgd_linf": {"epsilons": GRID, "errors": [0, 0.5, 1], "images": 5}}
    curves["square_linf"] = curves["pgd_linf"] | {"images": 3}
    there = classifier(tmp_path / "eval", "squares", "align", config=at, evaluated=str(run), curves=curves)
    (there / "images.csv").write_text(
        "index,ground_truth_class,predicted_class,smallest_epsilon_pgd_linf,smallest_epsilon_square_linf\n"
        "0,0,0,,0.1\n1,0,1,0,0\n2,1,1,0.2,\n3,1,1,0.2,\n4,1,0,0,\n"
    )
    table = accuracy_by_class(found_in(tmp_path)[1])
    assert [row.key[-1] for row in table.rows] == ["−1", "1"]
    values = [[cell.values[0] for cell in row.cells] for row in table.rows]
    assert values[0] == [50, 50, 0]
    assert values[1] == pytest.approx([200 / 3, 0, 100])  # one image of class 1 is among Square Attack's three
    (there / "images.csv").write_text("index,ground_truth_class\n0,1,2\n")
    assert not accuracy_by_class(found_in(tmp_path)[1]).rows


def test_accuracy_by_class_is_the_results_where_it_is_there(tmp_path):
    by_class = {"1": 0.75, "0": 0.5, "10": None}
    run = classifier(tmp_path / "run", "squares", "align", accuracy_by_class=by_class)
    table = accuracy_by_class(found_in(tmp_path)[1])
    assert [(row.key[-1], row.cells[0].values) for row in table.rows] == [("−1", (50,)), ("1", (75,))]
    at = {"config": {"task": "evaluate", "classifier": str(run)}, "evaluated": str(run)}
    curves = {"pgd_linf": {"epsilons": GRID, "errors": [0, 0.5, 1], "images": 2}}
    there = classifier(tmp_path / "eval", "squares", "align", curves=curves, accuracy_by_class={"0": 0.25}, **at)
    (there / "images.csv").write_text("ground_truth_class,predicted_class,smallest_epsilon_pgd_linf\n0,0,\n1,1,0.1\n")
    table = accuracy_by_class(found_in(tmp_path)[1])
    assert [[cell.values for cell in row.cells] for row in table.rows] == [[(25,), (100,), ()], [(100,), (0,), ()]]


def test_theory_has_lemma_1_by_the_best_attack_and_theorem_2s_bounds(tmp_path):
    """ε50% PGD L2 is 0.1 on the grid 0, 0.1, 0.2."""
    for seed, (condition, upper) in enumerate(((0.8, 0.2), (0.9, 0.09))):
        entry = {"condition": condition, "lemma_1": 0.5 + seed, "lemma_1_pgd": 9.0, "lower_bound": 0.05}
        classifier(tmp_path / f"a{seed}", "mnist", seed=seed, theory=entry | {"upper_bound": upper})
    entry = dict.fromkeys(("condition", "lemma_1", "lower_bound", "upper_bound")) | {"lemma_1_pgd": 0.7}
    classifier(tmp_path / "b", "mnist", "pgd", theory=entry)
    classifier(tmp_path / "old", "mnist", "align")
    table = theory(found_in(tmp_path)[1])
    assert [(row.key, row.note.partition("; ")[0]) for row in table.rows] == [
        (("mnist", "baseline"), "distance by Carlini and Wagner"),
        (("mnist", "pgd"), "distance by PGD L2"),
    ]
    texts = [cell.measured_text() for cell in table.rows[0].cells]
    assert texts == [
        *("85 ± 7.07 (2)", "1 ± 0.707 (2)", "0.05 ± 0 (2)", "0.1 ± 0 (2)", "0.145 ± 0.0778 (2)", "1 of 2"),
    ]
    values = [cell.values for cell in table.rows[1].cells]
    assert values == [(), (0.7,), (), (0.1,), (), ()]
    assert not theory(found_in(tmp_path / "old")[1]).rows


@pytest.mark.parametrize(
    ("half", "bounds", "censored", "expected"),
    [
        (0.15, (0.16, 0.18), False, "1 of 1"),  # between the same two ε of the grid
        (0.15, (0.21, 0.3), False, "0 of 1"),
        (0.15, (0.01, 0.09), False, "0 of 1"),
        (0.2, (0.01, 0.3), True, "missing"),  # it may be above
        (0.2, (0.01, 0.19), True, "0 of 1"),
    ],
)
def test_whether_epsilon_half_is_between_the_bounds(tmp_path, half, bounds, censored, expected):
    entry = dict(zip(("lower_bound", "upper_bound"), bounds, strict=True))
    curves = {"pgd_l2": {"epsilons": GRID, "errors": [0.0, 0.3, 0.6], "censored": censored}}
    classifier(tmp_path / "a", theory=entry, epsilon_half={"pgd_l2": half}, curves=curves)
    cell = cell_of(theory(found_in(tmp_path)[1]), "holds", "spheres", "baseline")
    assert cell.measured_text() == expected


ERRORS = {
    **{"apgd_ce": [0.1, 0.5, 1.0], "apgd_t": [0.1, 0.55, 1.0]},
    **{"fab_t": [0.1, 0.6, 1.0], "square": [0.1, 0.7, 1.0]},
}


def test_suites_are_beside_pgd_of_their_norm(tmp_path):
    """PGD L∞ has error 0.4 at ε 0.1, the grid's nearest to its ε50% of 0.08 and 0.12."""
    for seed, (half, worst) in enumerate(((0.08, 0.06), (0.12, 0.06))):
        halves = {"pgd_linf": half, "pgd_l2": 0.16}
        classifier(tmp_path / f"{seed}", seed=seed, epsilon_half=halves, suite=suite(ERRORS, worst))
    malt = suite({"apgd_t": [0.1, 0.5, 0.9]}, 0.2, "l2", "malt", censored=True)
    classifier(tmp_path / "malt", method="pgd", epsilon_half=halves, suite=malt)
    classifier(tmp_path / "old", method="align")
    table = robustness_by_suite(found_in(tmp_path)[1])
    assert [row.key for row in table.rows] == [
        ("spheres", "baseline", "autoattack", "linf"),
        ("spheres", "pgd", "malt", "l2"),
    ]
    row = {name: cell.values for name, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    expected = {"clean": 10, "pgd": 40, "apgd_ce": 50, "apgd_t": 55, "fab_t": 60, "square": 70, "worst": 70}
    for name, value in expected.items():
        assert row[name] == pytest.approx((value, value)), name
    assert row["epsilon"] == (0.1,)
    assert (row["half_pgd"], row["half_worst"]) == ((0.08, 0.12), (0.06, 0.06))
    assert row["lower"] == pytest.approx((25, 50))
    assert (row["gradients"], row["seconds"]) == ((400, 400), (120, 120))
    texts = dict(zip(table.columns, (cell.measured_text() for cell in table.rows[1].cells), strict=True))
    assert [texts[name] for name in ("apgd_ce", "fab_t", "square")] == ["–"] * 3
    assert (texts["epsilon"], texts["apgd_t"], texts["pgd"]) == ("0.2", "90 (1)", "100 (1)")
    assert (texts["half_worst"], texts["lower"]) == ("0.2† (1)", "−25† (1)")
    assert r"\|" not in formats.markdown(table)  # the paper has none of these numbers
    assert r"\shortstack{90 (1)}" in formats.latex(table)
    assert "| 0.2 | 100 (1) | – | 90 (1) | – | – | 90 (1) |" in formats.markdown(table)
    assert r"Cells: ours \| paper \| z." in formats.markdown(table_2(found_in(tmp_path)[1]))


def test_suites_of_different_settings_are_not_averaged(tmp_path):
    run = classifier(tmp_path / "run")
    for i, (steps, norm) in enumerate(((100, "linf"), (10, "linf"), (100, "l2"))):
        at = {"task": "evaluate", "classifier": str(run), "evaluate": {"suite_steps": steps}}
        classifier(tmp_path / f"eval{i}", config=at, evaluated=str(run), suite=suite(ERRORS, 0.05, norm))
    classifier(tmp_path / "other", seed=1, suite=suite(ERRORS, 0.07))
    rows = robustness_by_suite(found_in(tmp_path)[1]).rows
    assert [(row.key[-1], len(row.cells[0].values), "10 of 100 steps" in row.note) for row in rows] == [
        *(("linf", 2, False), ("linf", 1, True), ("l2", 1, False)),
    ]


def test_norms_and_success_of_estimates(tmp_path):
    direct = {"dataset": "mnist35", "task": "vrgan", "norms": {"delta": {"0": 4.0, "1": 5.0}}, "moved": 0.75}
    write(tmp_path / "direct", direct | {"moved_by_destination": {"0": 0.5, "1": 1.0}})
    indirect = write(tmp_path / "indirect", {"dataset": "mnist", "task": "project"})
    image = np.zeros((3, 8, 8, 1))
    projected = np.zeros((3, 10, 8, 8, 1))
    projected[0, 5], projected[2, 5] = 0.5, 1.0  # norms 4 and 8
    np.savez(indirect / "pictures.npz", image=image, label=[3, 5, 3], projected=projected)
    found, _ = found_in(tmp_path)
    assert cell_of(norms(found), "mnist35", "3→5").values == (4.0,)
    assert cell_of(norms(found), "mnist", "3→5").values == (6.0,)
    assert cell_of(norms(found), "mnist", "5→3").values == (0.0,)
    assert cell_of(success(found), "success", "mnist35", "all").values == (75.0,)
    assert cell_of(success(found), "success", "mnist35", "1").values == (100.0,)


def test_table_s1_has_settings_sizes_and_hours(tmp_path):
    splits = {"train": {"images": 54_000}, "validation": {"images": 6000}}
    at = {"train": {"epochs": 30, "batch_size": 64}, "attack": {"step_size": 0.02}, "align": {"weight": 0.3}}
    curve = {"epsilons": GRID, "errors": [0.0, 0.5, 1.0], "images": 10_000}
    for method in ("align", "pgd"):
        run = {"curves": {"pgd_linf": curve}, "splits": splits, "shape": [28, 28, 1], "seconds": 7200.0}
        classifier(tmp_path / method, "mnist", method, config=at, **run)
    write(tmp_path / "project", {"dataset": "mnist", "task": "project", "config": {"project": {"penalty": 1.5}}})
    table = table_s1(found_in(tmp_path)[0])
    for name, printed in paper.TABLE_S1_SETUP.items():
        cell = cell_of(table, "mnist", name)
        assert cell.measured_text() == printed["mnist"].text if "mnist" in printed else "–", name
        assert cell.paper_text() == printed["mnist"].text if "mnist" in printed else "–"
    assert cell_of(table, "mnist", "hours_pgd").values == (2.0,)
    assert cell_of(table, "squares", "train").measured_text() == "missing"
