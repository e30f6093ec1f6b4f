"""The report's tables besides the paper's first three: by class, theory, suites, norms, settings."""

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.report import formats
from gradalign_jax.report.tables_classifiers import accuracy_by_class, table_2, table_3
from gradalign_jax.report.tables_generators import norms, success
from gradalign_jax.report.tables_setup import table_s1
from gradalign_jax.report.tables_suite import robustness_by_suite
from gradalign_jax.report.tables_theory import theory
from made_up_runs import GRID, cell_of, classifier, found_in, suite, write


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
