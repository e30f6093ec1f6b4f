"""Which runs share a row of the report's tables, and what the rows note."""

from gradalign_jax import paper
from gradalign_jax.report import cells, formats, groups, tables
from gradalign_jax.report.differences import differences
from gradalign_jax.report.tables_classifiers import table_2
from gradalign_jax.report.tables_generators import similarities
from gradalign_jax.report.tables_setup import table_s1
from gradalign_jax.report.text import as_latex
from made_up_runs import GRID, cell_of, classifier, found_in, write

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
