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
from gradalign_jax.report import formats, paper_settings, runs, statistics
from gradalign_jax.report.differences import DESCRIBED, IDENTITY, WITHOUT_EFFECT, differences
from gradalign_jax.report.tables_classifiers import table_2, table_3, theorem_2
from gradalign_jax.report.tables_generators import similarities, table_1
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
