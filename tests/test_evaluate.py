"""Task evaluate and `gradalign_jax.evaluate`: a finished run measured again, kills, refusals, and what is warned of."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradalign_jax
from configs import spheres
from gradalign_jax import alignment, diagnosis, measurements, robustness
from gradalign_jax.tasks import classifier, evaluate
from gradalign_jax.workdir import RunError, Workdir

GRID = (0.002, 0.01, 0.4)


def small(argument, **changes):
    config = spheres.get_config(argument)
    if config.task == "classifier":
        config.train.epochs, config.train.steps_per_epoch, config.train.log_every = 1, 80, 80
        config.model.hidden = (32,)
        config.validate.epsilons = GRID
    config.data.limit, config.evaluate.block = 60, 16
    config.attack.steps, config.devices = 3, 1
    config.evaluate.linf_epsilons = config.evaluate.l2_epsilons = GRID
    config.update_from_flattened_dict(changes)
    return config


def start(task, path, config):
    workdir = Workdir(path, config.to_dict())
    try:
        return task.run(config, workdir)
    finally:
        workdir.close()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """As the entry point does: a run that is started again reads its programs back."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    path = tmp_path_factory.mktemp("runs") / "align"
    return path, start(classifier, path, small("align", **{"evaluate.square_queries": 5, "evaluate.square_images": 20}))


def evaluation(trained, **changes):
    options = {"classifier": str(trained[0]), "evaluate.square_queries": 30, "evaluate.cw_images": 2} | changes
    return small("evaluate", **options)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_repeats_the_run_s_numbers_and_survives_kills(trained, tmp_path, monkeypatch):
    path, before = trained
    monkeypatch.setattr("gradalign_jax.tasks.testing.cw.make", fast_nearest)
    config = evaluation(trained)
    whole = start(evaluate, tmp_path / "whole", config)
    assert (whole["dataset"], whole["method"], whole["seed"]) == ("spheres", "align", 0)
    assert whole["evaluated"] == str(path)
    for name in ("accuracy", "alpha_delta_x", "alpha_x", "best"):
        assert whole[name] == before[name]
    for attack in ("pgd_linf", "pgd_l2"):
        assert whole["curves"][attack] == before["curves"][attack]
    half, curve = whole["epsilon_half"]["square_linf"], whole["curves"]["square_linf"]
    assert half == robustness.epsilon_half(curve["epsilons"], curve["errors"])
    assert curve["errors"][0] <= curve["errors"][1] <= curve["errors"][-1]
    assert curve["queries"] == 30
    assert curve["images"] == 60
    record, deadly = Workdir.point, [("pgd_l2", 0), ("square_linf", 16)]

    def record_then_die(self, **values):
        record(self, **values)
        if deadly and (values["measure"], values["first"]) == deadly[0]:
            del deadly[0]
            raise Killed

    with monkeypatch.context() as patch:  # in the middle of PGD L2, and after the second shard of Square Attack
        patch.setattr(Workdir, "point", record_then_die)
        for _ in range(2):
            with pytest.raises(Killed):
                start(evaluate, tmp_path / "killed", config)
    resumed = start(evaluate, tmp_path / "killed", config)
    assert (tmp_path / "whole" / "images.csv").read_text() == (tmp_path / "killed" / "images.csv").read_text()
    del whole["seconds"], resumed["seconds"]
    assert whole == resumed
    check_table_of_images(tmp_path / "whole" / "images.csv", whole)


def fast_nearest(**_):
    """In place of 90,000 iterations: how far the image is from zero."""
    from gradalign_jax.attacks.cw import Found

    return lambda logits_fn, image, label: Found(image, jnp.linalg.norm(image, axis=1))


def check_table_of_images(path, result):
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 60
    wrong = np.mean([row["predicted_class"] != row["ground_truth_class"] for row in rows])
    assert 1 - wrong == pytest.approx(result["accuracy"])
    for row in rows:
        other = 1 - int(row["ground_truth_class"])
        assert row["closest_class"] == str(other)
        assert row[f"distance_class_{other}"] == row["distance"]
        assert row[f"alignment_class_{other}"] == row["alpha_delta_x"]
        assert row[f"distance_class_{1 - other}"] == row[f"alignment_class_{1 - other}"] == ""
        assert float(row["distance"]) * (1 if row["predicted_class"] != str(other) else -1) > 0
    for attack, curve in result["curves"].items():
        smallest = np.array([float(row[f"smallest_epsilon_{attack}"] or "inf") for row in rows])
        first_two = [np.mean(smallest <= e) for e in curve["epsilons"][:2]]
        np.testing.assert_allclose(first_two[0], curve["errors"][0])
        assert first_two[1] >= curve["errors"][1]
    for epsilon, error in list(zip(GRID, result["curves"]["pgd_linf"]["errors"][1:], strict=True)):
        column = f"closest_class_attack_epsilon_{epsilon:g}"
        assert np.mean([row[column] != row["ground_truth_class"] for row in rows]) == pytest.approx(error)
    linearity = result["linearity"]
    assert linearity["approximated"] == [float(row["distance"]) for row in rows[:2]]
    radius = [1.3 if row["ground_truth_class"] == "1" else 1.0 for row in rows[:2]]
    assert linearity["carlini_wagner"] == pytest.approx(radius, rel=1e-5)
    assert rows[2]["carlini_wagner_distance"] == ""


def test_the_selected_epoch_is_verified_on_the_whole_grid(trained):
    best = trained[1]["best"]
    assert best["validation_curve"]["epsilons"] == [0.0, *GRID]
    errors = best["validation_curve"]["errors"]
    assert best["validation_epsilon_half_whole_grid"] == robustness.epsilon_half([0.0, *GRID], errors)
    assert errors == sorted(errors)  # then the bracketed value is the same
    assert best["validation_epsilon_half"] == best["validation_epsilon_half_whole_grid"]


def test_black_box_also_within_a_classifier_run(trained):
    curve = trained[1]["curves"]["square_linf"]
    assert (curve["images"], curve["queries"]) == (20, 5)
    assert trained[1]["epsilon_half"]["square_linf"] == curve["epsilon_half"]


def test_what_cannot_be_evaluated_is_named(trained, tmp_path):
    config = evaluation(trained)
    config.data.name = "squares32"
    with pytest.raises(RunError, match=r"trained on spheres.*configs/spheres.py:evaluate"):
        start(evaluate, tmp_path / "a", config)
    with pytest.raises(RunError, match=r"classifier.safetensors is missing"):
        start(evaluate, tmp_path / "b", evaluation(trained, classifier=str(tmp_path)))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "classifier.safetensors").write_bytes((trained[0] / "classifier.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"result.json is missing.*finish"):
        start(evaluate, tmp_path / "c", evaluation(trained, classifier=str(unfinished)))
    config = evaluation(trained)
    workdir = Workdir(tmp_path / "d", config.to_dict())
    workdir.point(measure="weights", epsilon=None, first=0, value="another")
    workdir.close()
    with pytest.raises(RunError, match="other weights"):
        start(evaluate, tmp_path / "d", config)


DIRECTION = np.random.default_rng(0).normal(size=(4, 4, 1)).astype(np.float32)


def linear(image):
    score = (image * DIRECTION).sum((1, 2, 3))
    return jnp.stack([-score, score], -1)


def own_images(count=40):
    image = np.random.default_rng(1).uniform(-0.5, 0.5, (count, 4, 4, 1)).astype(np.float32)
    return image, np.asarray(linear(image)).argmax(-1).astype(np.int32)


def test_one_call_measures_one_s_own_model():
    """A linear classifier: ε50% is the median distance to its hyperplane, in either norm."""
    image, label = own_images()
    epsilons = tuple(np.linspace(0.01, 0.6, 30))
    result = gradalign_jax.evaluate(
        linear,
        image,
        label,
        epsilons=epsilons,
        step_size=0.1,
        queries=300,
        steps=20,
        loss="margin",
        delta_x=lambda x, y, target, index: DIRECTION * (2 * target - 1)[:, None, None, None],
        block=16,
    )
    margin = np.abs((image * DIRECTION).sum((1, 2, 3)))
    medians = np.median(margin / np.abs(DIRECTION).sum()), np.median(margin / np.linalg.norm(DIRECTION))
    assert result["epsilon_half"]["pgd_linf"] == pytest.approx(medians[0], abs=0.025)
    assert result["epsilon_half"]["pgd_l2"] == pytest.approx(medians[1], abs=0.09)
    assert medians[0] < result["epsilon_half"]["square_linf"] < 3 * medians[0]
    exact = margin / np.abs(DIRECTION).sum()  # distances in L∞: the next ε of the grid fools
    np.testing.assert_allclose(result["smallest_epsilon"]["pgd_linf"], exact, atol=0.025)
    assert result["accuracy"] == 1
    assert result["alpha_delta_x"] == pytest.approx(1, abs=1e-5)
    assert not any("PGD" in line for line in result["warnings"])
    assert result["classes"] == 2
    json.dumps(result)


def test_what_a_user_gives_is_checked():
    image, label = own_images(8)

    def fails(match, logits_fn=linear, image=image, label=label, **options):
        with pytest.raises(ValueError, match=match):
            gradalign_jax.evaluate(logits_fn, image, label, **({"epsilons": (0.1,)} | options))

    fails(r"look like \[0, 255\]", image=(image + 1) * 127)
    fails("hold NaN", image=np.where(image == image[0, 0, 0, 0], np.nan, image))
    fails("labels run from", label=label + 5)
    fails("num_classes=10", num_classes=10)
    fails("ascending", epsilons=(0.2, 0.1))
    fails("unknown attack 'fgsm'", attacks=("fgsm",))
    fails("cannot be traced by JAX", logits_fn=lambda x: np.asarray(x))
    fails("not logits", logits_fn=lambda x: x.sum((1, 2, 3)))
    fails("ascending numbers", epsilons=(0.1, np.inf))
    fails("smallest and the largest", bounds=None)
    fails("unknown attack loss 'hinge'", loss="hinge", attacks=("square_linf",))
    fails("must be an integer", steps=4.0)
    fails("must be an integer", seed="a")
    fails("must be a number", step_size="a")
    fails("ascending numbers", epsilons=None)
    fails("must be a list of names", attacks=None)
    fails("delta_x cannot be traced", delta_x=lambda x, *_: np.asarray(x))
    fails("delta_x returns", delta_x=lambda x, *_: x.sum(-1))


def test_what_is_not_a_number_counts_as_wrong_and_is_told():
    """A model whose gradient is NaN on half of the images, and one whose logits are."""
    image, label = own_images(40)
    options = {"epsilons": (0.5, 5.0), "bounds": (-9.0, 9.0), "steps": 3, "queries": 20, "block": 20}

    @jax.custom_vjp
    def spoilt(x, bad):
        return x

    spoilt.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), None))

    def blind(x):
        return linear(spoilt(x, (x[:, :1, :1] > 0)))

    told = gradalign_jax.evaluate(blind, image, label, **options)
    assert told["accuracy"] == 1
    assert any("no gradient, zero or not a number" in line for line in told["warnings"])
    nothing = gradalign_jax.evaluate(lambda x: linear(x) * jnp.nan, image, label, **options)
    assert nothing["accuracy"] == 0
    for curve in nothing["curves"].values():
        assert curve["errors"] == [1, 1, 1]
    assert any("not a number, on 100.0% of the images" in line for line in nothing["warnings"])
    # Not a number beyond the images, where only attacks get.
    within = float(np.abs(image).max())

    def broken(x):
        return jnp.where(jnp.abs(x).max((1, 2, 3))[:, None] > within + 1e-6, jnp.nan, linear(x))

    for name, curve in gradalign_jax.evaluate(broken, image, label, **options)["curves"].items():
        assert curve["errors"][0] == 0, name
        assert curve["errors"][1] > 0.9, name  # a random start may stay within
        assert curve["errors"][2] == 1, name


def test_grids_may_be_arrays(tmp_path):
    image, label = own_images(8)
    options = {"attacks": ("pgd_linf",), "steps": 1}
    plain = gradalign_jax.evaluate(linear, image, label, epsilons=(0.25, 0.5), **options)
    for name, library in (("numpy", np), ("jax", jnp)):  # a directory each, so that both are computed
        given = library.array([0.25, 0.5], "float32")
        result = gradalign_jax.evaluate(linear, image, label, epsilons=given, workdir=tmp_path / name, **options)
        assert result == plain


def test_a_killed_call_goes_on_where_it_was(tmp_path, monkeypatch):
    image, label = own_images(20)
    options = {"epsilons": (0.1, 0.3), "steps": 2, "queries": 20, "workdir": tmp_path / "own"}
    whole = gradalign_jax.evaluate(linear, image, label, **options | {"workdir": None})
    record, finished = Workdir.point, []

    def some(self, **values):
        if len(finished) == 3:
            raise Killed
        record(self, **values)
        finished.append(values)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "point", some)
        with pytest.raises(Killed):
            gradalign_jax.evaluate(linear, image, label, **options)
    assert gradalign_jax.evaluate(linear, image, label, **options) == whole
    points = (tmp_path / "own" / "evaluation.jsonl").read_text().splitlines()
    assert len(points) == len({(p["measure"], p["epsilon"], p["first"]) for p in map(json.loads, points)}) > 3
    for changed in ({"seed": 1}, {"steps": 3}):
        with pytest.raises(ValueError, match="settings"):
            gradalign_jax.evaluate(linear, image, label, **options | changed)
    with pytest.raises(ValueError, match="another logits_fn"):
        gradalign_jax.evaluate(lambda x: 1.01 * linear(x), image, label, **options)


def test_a_repeated_call_takes_another_rounding_and_another_delta_x(tmp_path):
    """Rounding is not another classifier; vectors that differ from the third image on are another Δx."""
    image, label = own_images(8)
    options = {"epsilons": (0.1,), "attacks": ("pgd_linf",), "steps": 1, "workdir": tmp_path}
    table = np.random.default_rng(2).normal(size=image.shape).astype(np.float32)
    changed = np.where(np.arange(8)[:, None, None, None] < 2, table, -table)
    first, second = (
        gradalign_jax.evaluate(
            lambda x, scale=scale: linear(x) * scale, image, label, delta_x=lambda x, y, t, i, v=v: v[i], **options
        )
        for scale, v in ((1.0, jnp.asarray(table)), (1 + 1e-6, jnp.asarray(changed)))
    )
    fresh = gradalign_jax.evaluate(
        linear, image, label, delta_x=lambda x, y, t, i: jnp.asarray(changed)[i], **options | {"workdir": None}
    )
    assert second["alpha_delta_x"] == pytest.approx(fresh["alpha_delta_x"])
    assert second["alpha_delta_x"] != pytest.approx(first["alpha_delta_x"], abs=0.01)
    assert second["curves"] == first["curves"]


def test_models_of_any_kind():
    """Flax, and a closure over arrays; only some attacks; a model without gradients is warned of."""
    from flax import linen as nn

    image, label = own_images(20)
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(2)])
    variables = model.init(jax.random.key(0), image)
    options = {"epsilons": (0.1, 2.0), "attacks": ("pgd_linf",), "steps": 2}
    result = gradalign_jax.evaluate(lambda x: model.apply(variables, x), image, label, **options)
    assert result["epsilon_half"]["square_linf"] is None
    expected = (np.asarray(model.apply(variables, image)).argmax(-1) == label).mean()
    assert result["accuracy"] == pytest.approx(expected)
    blind = gradalign_jax.evaluate(lambda x: jnp.round(linear(x)), image, label, **options)
    assert any("no gradient, zero or not a number, on 100.0%" in line for line in blind["warnings"])


def test_every_class_against_the_plain_formula():
    rng = np.random.default_rng(0)
    weight, image = rng.normal(size=(12, 3)), rng.normal(size=(5, 12))
    label, vectors = rng.integers(0, 3, 5), rng.normal(size=(3, 12))
    got = alignment.by_class(
        lambda x: x @ weight,
        lambda x, y, target, index: vectors[np.zeros(5, int)] * 0 + jnp.asarray(vectors)[target],
        image,
        label,
    )
    for i, y in enumerate(label):
        for k in range(3):
            if k == y:
                assert np.isinf(got["distance"][i, k])
                assert np.isnan(got["alignment"][i, k])
                continue
            gradient = weight[:, k] - weight[:, y]
            distance = image[i] @ (weight[:, y] - weight[:, k]) / np.linalg.norm(gradient)
            cosine = vectors[k] @ gradient / np.linalg.norm(gradient) / np.linalg.norm(vectors[k])
            np.testing.assert_allclose(got["distance"][i, k], distance, rtol=1e-4)
            np.testing.assert_allclose(got["alignment"][i, k], cosine, rtol=1e-4)


def curve(*errors, censored=False):
    return {"epsilons": [0.0, *range(1, len(errors))], "errors": list(errors), "censored": censored}


@pytest.mark.parametrize(
    ("curves", "options", "named"),
    [
        ({"pgd_linf": curve(0.0, 0.4, 1.0)}, {}, []),
        ({"pgd_linf": curve(0.0, 0.4, 1.0)}, {"zero_gradients": 0.25}, ["no gradient, zero or not a number, on 25.0%"]),
        ({"pgd_linf": curve(0, 1)}, {"zero_gradients": 0.25}, ["attack with the margin loss"]),
        ({"pgd_linf": curve(0, 1)}, {"zero_gradients": 0.25, "loss": "margin"}, ["believe Square Attack there"]),
        ({"square_linf": curve(0.0, 0.4, 1.0)}, {"zero_gradients": 0.25}, []),  # it needs no gradient
        (
            {"pgd_l2": curve(0.0, 0.6, 0.5, 1.0)},
            {},
            ["PGD L2 the error falls from 60.0% to 50.0% as ε rises from 1 to 2"],
        ),
        ({"pgd_linf": curve(0.0, 0.6, 0.595, 1.0)}, {}, []),  # noise
        ({"pgd_linf": curve(0.57, 0.9, 1.0)}, {}, ["57.0% of the images are misclassified without an attack"]),
        ({"pgd_linf": curve(0.0, 0.9)}, {}, ["at its largest ε=1 leaves 10.0%"]),
        ({"pgd_linf": curve(0.0, 0.3, censored=True)}, {}, ["censored"]),
        (
            {"pgd_linf": curve(0, 0.5, 1), "square_linf": curve(0, 0.6, 1)},
            {},
            [
                "black box beats",
            ],
        ),
        ({"pgd_linf": curve(0, 0.5, 1), "square_linf": curve(0, 0.6, 1)}, {"white_box": [0, 0.7, 1]}, []),
        ({"pgd_linf": curve(0, 0.7, 1), "square_linf": curve(0, 0.6, 1)}, {}, []),
    ],
)
def test_an_evaluation_says_what_speaks_against_it(curves, options, named):
    lines = diagnosis.warnings(curves, **options)
    assert len(lines) == len(named)
    for line, word in zip(lines, named, strict=True):
        assert word in line


def test_smallest_epsilon_of_each_image():
    wrong = [[0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(robustness.smallest_epsilon((0, 0.5, 1), wrong), [0.5, 1, 0, np.inf])
    with pytest.raises(ValueError, match="ascend"):
        robustness.smallest_epsilon((0, 1, 0.5), wrong)


def test_a_plan_is_cut_into_points_that_cover_every_image():
    class Fake:
        size, block, alignments = 23, 2, None

    plan = measurements.Plan({"pgd_linf": (0.1, (1.0, 2.0))}, (1.0,), 10, square_images=5, nearest_images=3)
    points = measurements.schedule(Fake(), {}, plan)
    covered = {}
    for point in points:
        covered.setdefault((point.measure, point.epsilon), []).extend(point.part)
    assert covered.pop(("square_linf", None)) == list(range(5))
    assert covered.pop(("nearest", None)) == list(range(3))
    assert set(covered) == {("clean", None), ("alignment", None), ("pgd_linf", 1.0), ("pgd_linf", 2.0)}
    assert all(places == list(range(23)) for places in covered.values())
