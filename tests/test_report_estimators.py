"""The report's table and figure of estimators of Δx, from made-up results of launch/deltax.py."""

import numpy as np
import pytest

from gradalign_jax.report import figures_estimators, runs, style, tables_estimators
from made_up_runs import cell_of, classifier, found_in, write

EXACT = {"estimator": "exact", "cosine": 1.0, "success": 1.0, "length": 0.3, "epsilon_half": 0.007}
NEAREST = {"estimator": "nearest of 8", "cosine": 0.25, "cosine_sd": 0.125, "success": 0.5, "length": 1.5}


def scores(folder, dataset="spheres", rows=(EXACT, NEAREST)):
    return write(folder, {"dataset": dataset, "task": "deltax", "images": 1200, "estimators": list(rows)})


def table_of(*folders):
    return tables_estimators.estimators(found_in(*folders)[0])


def test_the_table_has_a_row_for_each_estimator_and_the_scores_that_exist(tmp_path):
    classifier(tmp_path / "other")
    scores(tmp_path / "mnist", "mnist", [NEAREST])
    scores(tmp_path / "spheres")
    table = table_of(tmp_path)
    assert table.columns == ("cosine", "cosine_sd", "success", "length", "epsilon_half")
    assert [row.key for row in table.rows] == [
        ("spheres", "exact"),
        ("spheres", "nearest of 8"),
        ("mnist", "nearest of 8"),
    ]
    assert [row.note for row in table.rows] == ["1,200 test images", "", "1,200 test images"]
    assert cell_of(table, "success", "spheres", "nearest of 8").values == (50.0,)
    assert cell_of(table, "success", "spheres", "nearest of 8").measured_text() == "50.0"
    assert cell_of(table, "cosine", "mnist", "nearest of 8").values == (0.25,)
    assert cell_of(table, "epsilon_half", "spheres", "exact").values == (0.007,)
    assert cell_of(table, "epsilon_half", "mnist", "nearest of 8").measured_text() == "–"


def test_two_runs_on_a_data_set_are_told_apart(tmp_path):
    for name in ("first", "second"):
        scores(tmp_path / name)
    notes = [row.note for row in table_of(tmp_path).rows]
    assert notes[0].endswith("first")
    assert notes[2].endswith("second")


def test_the_figure_shows_the_vectors_of_every_estimator_side_by_side(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"spheres": (500,), "mnist": (28, 28, 1)}
    kept = {}
    for dataset, names in (("spheres", ("exact", "nearest of 8")), ("mnist", ("nearest of 8", "encoder, 30 steps"))):
        folder = scores(tmp_path / dataset, dataset)
        kept[dataset] = {name: random.normal(size=(3, *shapes[dataset])) for name in ("", *names)}
        vectors = {f"delta_x_{name}": kept[dataset][name] for name in names}
        np.savez(folder / "pictures.npz", image=kept[dataset][""], label=[1, 1, 0], target=[0, 0, 1], **vectors)
    figure = figures_estimators.draw(style.Inputs(*found_in(tmp_path)), style.LIGHT)
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["x", "exact", "nearest of 8", "encoder, 30 steps"]
    assert len(axis.get_xticklabels()) == 4  # an image of each class and data set
    assert axis.get_xticklabels()[2].get_text() == "MNIST"
    assert "0 → 1" in [text.get_text() for text in axis.texts]
    assert len(axis.images) == 4 * 3  # x and two estimators each
    rows = dict(zip(("x", "exact", "nearest of 8"), axis.get_yticks(), strict=False))

    def at(column, name):
        """Return what is drawn in a cell."""
        center = lambda image: np.reshape(image.get_extent(), (2, 2)).mean(1)  # noqa: E731
        (found,) = [image for image in axis.images if np.allclose(center(image), (column, rows[name]))]
        return found.get_array()

    np.testing.assert_allclose(at(2, "nearest of 8"), kept["mnist"]["nearest of 8"][2, ..., 0], rtol=1e-6)
    np.testing.assert_allclose(at(1, "exact").ravel(), kept["spheres"]["exact"][0], rtol=1e-6)


def test_without_scores_there_is_no_table_or_figure(tmp_path):
    classifier(tmp_path)
    assert not table_of(tmp_path).rows
    assert figures_estimators.draw(style.Inputs(*found_in(tmp_path)), style.LIGHT) is None


def test_scores_without_pictures_have_a_table_alone(tmp_path):
    scores(tmp_path)
    assert len(table_of(tmp_path).rows) == 2
    assert figures_estimators.draw(style.Inputs(*found_in(tmp_path)), style.LIGHT) is None


@pytest.mark.parametrize(
    "rows", [{}, [0.5], [{"cosine": 1.0}], [EXACT | {"cosine": "high"}], [EXACT | {"estimator": 1}]]
)
def test_damaged_scores_are_named(tmp_path, rows):
    write(tmp_path, {"dataset": "spheres", "task": "deltax", "estimators": rows})
    found, (damaged,) = runs.collect([tmp_path])
    assert not found
    assert damaged.reason == "estimators is not a list of named rows of numbers"
