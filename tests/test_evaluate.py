"""Task `evaluate`: finished runs measured again, kills, refused inputs, and warnings."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradalign_jax
from configs import spheres
from gradalign_jax import alignment, data, robustness
from gradalign_jax.attacks.cw import Found
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation import api, schedule, warnings
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.evaluation.programs import Model, build
from gradalign_jax.experiment import artifacts, config_checks
from gradalign_jax.experiment.subject import Stream, load_subject
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import classifier, evaluate

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
    """Use a compilation cache, as the entry point does: a run that is started again does not compile again."""
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


def test_evaluation_equals_the_run_and_survives_kills(trained, tmp_path, monkeypatch):
    path, before = trained
    monkeypatch.setattr("gradalign_jax.evaluation.programs.cw.make", fast_nearest)
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


def test_a_suite_measures_what_the_library_call_does_and_survives_kills(trained, tmp_path, monkeypatch):
    settings = {"suite": "autoattack", "norm": "l2", "suite_steps": 6, "suite_queries": 20, "square_queries": 0}
    config = evaluation(trained, **{f"evaluate.{name}": value for name, value in settings.items()})
    config.evaluate.cw_images, config.evaluate.l2_epsilons = 0, (0.2, 0.8, 1.6)
    record, deadly = Workdir.point, [("apgd_t_l2", 20), ("fab_t_l2", 0), ("square_l2", 0)]
    made = []

    def record_then_die(self, **values):
        record(self, **values)
        made.append((values["measure"], values["epsilon"], values["first"]))
        if deadly and (values["measure"], values["first"]) == deadly[0]:
            del deadly[0]
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "point", record_then_die)
        for _ in range(3):
            with pytest.raises(Killed):
                start(evaluate, tmp_path, config)
        found = start(evaluate, tmp_path, config)["suite"]
    assert len(made) == len(set(made))  # nothing was measured twice
    assert {name for name, *_ in made} >= {"apgd_ce_l2", "apgd_t_l2", "fab_t_l2", "square_l2"}

    variables, model, _ = artifacts.load_classifier(str(trained[0]), "spheres", "config.classifier")
    subject = load_subject(config, model, batch_size=0)
    logits_fn = Model(subject.classifier, jax.device_get(variables))
    split, key = subject.split("test"), subject.stream(Stream.TEST)
    monkeypatch.setattr(api, "build", lambda *arguments, **options: build(*arguments, **options | {"key": key}))
    options = {"epsilons": config.evaluate.l2_epsilons, "block": 16}
    suite = gradalign_jax.Suite("autoattack", "l2", steps=6, queries=20)
    result = gradalign_jax.evaluate(logits_fn, split.image, split.label, suite=suite, **options)
    assert result["fooled_by"] == found["fooled_by"]
    assert {by for row in found["fooled_by"] for by in row} >= {None, "apgd_ce_l2"}
    for name, curve in found["curves"].items():
        curve.pop("seconds", None)
        result["curves"][name].pop("seconds", None)
        assert result["curves"][name] == curve


def fast_nearest(**_):
    """Build a stand-in for 90,000 iterations: the distance of the image from zero."""
    return lambda logits_fn, image, label: Found(image, jnp.linalg.norm(image, axis=1))


def check_table_of_images(path, result):
    rows = list(csv.DictReader(path.read_text().splitlines()))
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


def test_directions_are_measured_from_the_config_and_survive_kills(trained, tmp_path, monkeypatch):
    chosen = {"evaluate.gradients": ("plain", "integrated"), "evaluate.measures": ("etmann", "removal")}
    config = evaluation(trained, **chosen, **{"evaluate.square_queries": 0, "evaluate.cw_images": 0})
    config.evaluate.block = 8  # on one device two points of 4 blocks
    config_checks.check(config)
    result = start(evaluate, tmp_path / "whole", config)
    found = result["directions"]
    assert found["alignment"]["plain"] == {"exact": pytest.approx(result["alpha_delta_x"], abs=1e-6)}
    assert found["alignment"]["integrated"]["exact"] > 0
    assert set(found["removal"]) == {"plain", "integrated", "random"}
    assert (tmp_path / "whole" / "directions.png").stat().st_size > 0
    with np.load(tmp_path / "whole" / "pictures.npz") as arrays:
        np.testing.assert_allclose(arrays["gradient_plain"], arrays["gradient"], rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(arrays["delta_x_exact"], arrays["delta_x"])
        assert arrays["gradient_integrated"].shape == arrays["image"].shape
    record = Workdir.point

    def record_then_die(self, **values):
        record(self, **values)
        if (values["measure"], values["first"]) == ("directions", 0):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "point", record_then_die)
        with pytest.raises(Killed):
            start(evaluate, tmp_path / "killed", config)
    resumed = start(evaluate, tmp_path / "killed", config)
    assert resumed["directions"] == found


def test_without_gradients_nothing_is_added(trained):
    assert "directions" not in trained[1]
    with np.load(trained[0] / "pictures.npz") as arrays:
        assert set(arrays) == {"image", "label", "target", "gradient", "delta_x"}
    assert not (trained[0] / "directions.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.gradients": ("saliency",)}, "must be a tuple of some of integrated, plain, smoothgrad, each once"),
        ({"evaluate.measures": ("etmann",)}, "config.evaluate.measures=('etmann',) needs config.evaluate.gradients"),
        (
            {"evaluate.gradients": ("plain",), "evaluate.measures": ("noise",)},
            "'noise' needs config.evaluate.store=DIR",
        ),
        (
            {"evaluate.gradients": ("plain",), "evaluate.estimators": ("vrgan",)},
            "'vrgan' needs a finished run; make it the Δx that measures, by config.evaluate.generator=DIR",
        ),
        ({"evaluate.estimators": ("nearest", "nearest")}, "each once"),
    ],
)
def test_bad_directions_are_refused_in_one_line(trained, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        config_checks.check(evaluation(trained, **changes))
    assert "\n" not in str(error.value)


def test_the_selected_epoch_is_measured_on_the_whole_grid(trained):
    best = trained[1]["best"]
    assert best["validation_curve"]["epsilons"] == [0.0, *GRID]
    errors = best["validation_curve"]["errors"]
    assert best["validation_epsilon_half_whole_grid"] == robustness.epsilon_half([0.0, *GRID], errors)
    assert errors == sorted(errors)  # monotone, so the bracketed value is the same
    assert best["validation_epsilon_half"] == best["validation_epsilon_half_whole_grid"]


def test_a_classifier_run_includes_square_attack(trained):
    curve = trained[1]["curves"]["square_linf"]
    assert (curve["images"], curve["queries"]) == (20, 5)
    assert trained[1]["epsilon_half"]["square_linf"] == curve["epsilon_half"]


def test_errors_name_what_cannot_be_evaluated(trained, tmp_path):
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


def test_by_class_equals_the_formula():
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
        ({"pgd_linf": curve(0, 1)}, {"zero_gradients": 0.25, "loss": "margin"}, ["rely on Square Attack there"]),
        ({"square_linf": curve(0.0, 0.4, 1.0)}, {"zero_gradients": 0.25}, []),  # Square Attack needs no gradient
        (
            {"pgd_l2": curve(0.0, 0.6, 0.5, 1.0)},
            {},
            ["PGD L2 the error falls from 60.0% to 50.0% as ε rises from 1 to 2"],
        ),
        ({"pgd_linf": curve(0.0, 0.6, 0.595, 1.0)}, {}, []),  # a fall within noise
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
def test_warnings_name_reasons_to_doubt_an_evaluation(curves, options, named):
    lines = warnings.collect(curves, **options)
    assert len(lines) == len(named)
    for line, word in zip(lines, named, strict=True):
        assert word in line


def test_smallest_epsilon_of_each_image():
    wrong = [[0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(robustness.smallest_epsilon((0, 0.5, 1), wrong), [0.5, 1, 0, np.inf])
    with pytest.raises(ValueError, match="ascend"):
        robustness.smallest_epsilon((0, 1, 0.5), wrong)


def test_points_of_a_plan_cover_every_image():
    class Fake:
        size, block, alignments = 23, 2, None

        @property
        def blocks(self):
            return Blocks(data.Split(*[np.zeros(23)] * 3), on=jax.local_devices()[:1], block=2)

    plan = schedule.Plan({"pgd_linf": (0.1, (1.0, 2.0))}, (1.0,), 10, square_images=5, nearest_images=3)
    points = schedule.schedule(Fake(), {}, plan)
    covered = {}
    for point in points:
        covered.setdefault((point.measure, point.epsilon), []).extend(point.part)
    assert covered.pop(("square_linf", None)) == list(range(5))
    assert covered.pop(("nearest", None)) == list(range(3))
    assert set(covered) == {("clean", None), ("alignment", None), ("pgd_linf", 1.0), ("pgd_linf", 2.0)}
    assert all(places == list(range(23)) for places in covered.values())
