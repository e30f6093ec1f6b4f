"""The report's table and matrix of directions, from made-up result files."""

import numpy as np
import pytest

from gradalign_jax.report import arrays, figures_directions, runs, style, tables_directions
from made_up_runs import cell_of, classifier, found_in

ALIGNMENT = {"smoothgrad": {"exact": 0.5, "nearest": None}, "plain": {"exact": 0.4, "nearest": 0.2}}
DIRECTIONS = {
    "alignment": ALIGNMENT,
    "etmann": {"plain": 1.5, "predicted": 1.25},
    "tangent_share": {"plain": 0.3, "random": 0.125},
    **{"removal": {"plain": [0.9, 0.5, 0.4], "random": [1.0, 0.75, 0.5]}, "removed": [0.1, 0.3, 0.5]},
    **{"noise": {"on": [0.1, 0.2], "off": [0.01, 0.02]}, "radii": [0.05, 0.1]},
}


def table_of(*folders):
    return tables_directions.directions(found_in(*folders)[1])


def value(table, column, gradient, method="baseline"):
    return cell_of(table, column, "spheres", method, gradient).values


def test_the_table_has_every_pair_and_measure(tmp_path):
    classifier(tmp_path, directions=DIRECTIONS)
    table = table_of(tmp_path)
    assert [row.key[2] for row in table.rows] == ["plain", "smoothgrad", "predicted", "random"]
    assert table.columns[:2] == ("alpha_exact", "alpha_nearest")
    assert value(table, "alpha_exact", "plain") == (0.4,)
    assert value(table, "alpha_nearest", "plain") == (0.2,)
    assert cell_of(table, "alpha_nearest", "spheres", "baseline", "smoothgrad").measured_text() == "–"
    assert value(table, "etmann", "predicted") == (1.25,)
    assert value(table, "tangent_share", "random") == (12.5,)
    assert value(table, "removal", "plain") == (50.0,)  # without 30 %
    assert (value(table, "noise_on", "random"), value(table, "noise_off", "random")) == ((0.2,), (0.02,))


def test_only_measured_columns_are_there_and_seeds_are_averaged(tmp_path):
    for seed, alpha in enumerate((0.2, 0.4)):
        found = {"alignment": {"plain": {"exact": alpha}}}
        classifier(tmp_path / str(seed), seed=seed, directions=found)
    table = table_of(tmp_path)
    assert table.columns == ("alpha_exact",)
    assert value(table, "alpha_exact", "plain") == (0.2, 0.4)
    classifier(tmp_path / "without", "mnist35")
    assert [row.key[0] for row in table_of(tmp_path).rows] == ["spheres"]


def test_there_is_no_table_or_figure_without_directions(tmp_path):
    classifier(tmp_path)
    inputs = style.Inputs(*found_in(tmp_path))
    assert not table_of(tmp_path).rows
    assert figures_directions.draw(inputs, style.LIGHT) is None


@pytest.mark.parametrize("with_pictures", [True, False])
def test_the_matrix_shows_its_numbers_with_and_without_pictures(tmp_path, with_pictures):
    for method in ("baseline", "pgd"):
        run = classifier(tmp_path / method, method=method, directions=DIRECTIONS)
        if with_pictures:
            image = np.random.default_rng(0).normal(size=(2, 500))
            vectors = dict.fromkeys(("gradient_plain", "gradient_smoothgrad", "delta_x_exact"), image)
            np.savez(run / "pictures.npz", image=image, label=[0, 1], **vectors)
    figure = figures_directions.draw(style.Inputs(*found_in(tmp_path)), style.LIGHT)
    (axis,) = figure.axes
    texts = [text.get_text() for text in axis.texts]
    assert texts.count(".400") == texts.count(".500") == texts.count(".200") == 2
    assert len(axis.images) == (2 * 4 if with_pictures else 0)


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("alignment", {"plain": 0.5}, "directions.alignment is not a table of tables of numbers"),
        ("removal", {"plain": [0.5]}, "directions.removal.plain has 1 values, another number than removed"),
        ("radii", ["x"], "directions.radii is not a list of numbers"),
    ],
)
def test_damaged_directions_are_named(tmp_path, name, changed, reason):
    classifier(tmp_path, directions=DIRECTIONS | {name: changed})
    found, (damaged,) = runs.collect([tmp_path])
    assert not found
    assert damaged.reason == reason


def test_pictures_of_another_shape_are_left_out(tmp_path):
    image = np.zeros((2, 500))
    np.savez(tmp_path / "pictures.npz", image=image, label=[0, 1], gradient_plain=image[:, 1:])
    assert arrays.read_pictures(runs.Run(tmp_path, {})) is None
