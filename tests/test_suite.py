"""Suites of attacks: closed forms, survivors, resuming, and warnings about models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradalign_jax
import peers
from gradalign_jax import Suite, parallel
from gradalign_jax.evaluation import suite as suites
from gradalign_jax.evaluation import warnings
from gradalign_jax.storage.workdir import Workdir

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(12, 5)).astype(np.float32)
IMAGE = RNG.uniform(-0.4, 0.4, (24, 2, 2, 3)).astype(np.float32)
OPTIONS = {"bounds": (-9.0, 9.0), "block": 8}
SMALL = {"steps": 20, "targets": 3, "queries": 30}
EPSILONS = (0.02, 0.05, 0.1, 0.2)


def linear(image):
    return image.reshape(len(image), -1) @ WEIGHT


LABEL = np.asarray(linear(IMAGE)).argmax(-1)


def distances(norm):
    """Return the distance of each image to each other class's boundary, `[N, K]`, +inf at the label."""
    logits = IMAGE.reshape(24, -1) @ WEIGHT
    found = np.full((24, 5), np.inf)
    for i, y in enumerate(LABEL):
        for k in set(range(5)) - {y}:
            difference = WEIGHT[:, y] - WEIGHT[:, k]
            size = np.abs(difference).sum() if norm == "linf" else np.linalg.norm(difference)
            found[i, k] = (logits[i, y] - logits[i, k]) / size
    return found


@pytest.mark.parametrize(
    ("name", "norm"), [("autoattack", "linf"), ("autoattack", "l2"), ("malt", "linf"), ("malt", "l2")]
)
def test_the_worst_case_of_a_linear_model_is_its_distance(name, norm):
    epsilons = EPSILONS if norm == "linf" else tuple(3 * e for e in EPSILONS)
    result = gradalign_jax.evaluate(
        linear, IMAGE, LABEL, epsilons=epsilons, suite=Suite(name, norm, **SMALL), **OPTIONS
    )
    exact = distances(norm).min(1)
    expected = [0.0, *(float((exact <= e).mean()) for e in epsilons)]
    worst = result["curves"][f"worst_{norm}"]
    np.testing.assert_allclose(worst["errors"], expected, atol=1.01 / 24)  # an image at the edge of a ball
    assert worst["epsilons"] == [0.0, *epsilons]
    stages = ["apgd_ce", "apgd_t", "fab_t", "square"] if name == "autoattack" else ["apgd_t"]
    assert set(result["curves"]) == {f"{stage}_{norm}" for stage in [*stages, "worst"]}
    errors = np.array([result["curves"][f"{stage}_{norm}"]["errors"] for stage in stages])
    assert (np.diff(errors, axis=0) >= 0).all()  # each curve includes the attacks before it
    assert errors[-1].tolist() == worst["errors"]
    for row, error in zip(result["fooled_by"], worst["errors"][1:], strict=True):
        assert np.mean([by is not None for by in row]) == error
    json.dumps(result)


def test_targets_are_the_nearest_linearized_boundaries():
    for norm in ("linf", "l2"):
        found = suites.nearest_classes(linear, jnp.asarray(IMAGE), jnp.asarray(LABEL), 2, norm)
        np.testing.assert_array_equal(found, distances(norm).argsort(1)[:, :2])


def test_only_survivors_are_attacked_at_larger_epsilons():
    calls = []

    def stage(name, limit, minimal=False):
        def call(variables, place, epsilon, turn):
            calls.append((name, float(epsilon[0]), place.tolist()))
            distance = np.where(place < limit, 0.03 if minimal else epsilon, np.inf)
            return {"distance": distance, "gradients": np.ones(len(place)), "queries": np.zeros(len(place))}

        return suites.Stage(name, call, minimal, block=3)

    wrong = np.array([True, False, False, False, False, False])
    attacks = [stage("a", 2), stage("b", 4, minimal=True), stage("c", 0)]
    outcome = suites.run(attacks, None, (0.01, 0.05), wrong)
    assert calls == [
        ("a", np.float32(0.01), [1, 2, 3]),
        ("a", np.float32(0.01), [4, 5]),
        ("a", np.float32(0.05), [2, 3, 4]),  # image 1 fell at the smaller ε
        ("a", np.float32(0.05), [5]),
        ("b", np.float32(0.05), [2, 3, 4]),
        ("b", np.float32(0.05), [5]),
        ("c", np.float32(0.01), [2, 3, 4]),
        ("c", np.float32(0.01), [5]),
        ("c", np.float32(0.05), [4, 5]),
    ]
    assert outcome.fooled[-1].tolist() == [
        [True, True, False, False, False, False],
        [True, True, True, True, False, False],
    ]
    assert outcome.gradients.tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2]]


def test_another_start_that_still_gains_is_reported():
    """The attack is a coin: from the second start it fools every third image."""
    places = []

    def call(variables, place, epsilon, turn, restart=0):
        places.append(place.tolist())
        assert restart == 1
        return {"distance": np.where(place % 3 == 0, epsilon, np.inf)}

    fooled = np.zeros((2, 60), bool)
    fooled[1, 30:] = True
    again = suites.start_again(suites.Stage("apgd_ce_linf", call, False, 24), None, (0.1, 0.2), fooled)
    assert places == [list(range(24))]  # a block of the survivors
    assert again == (0.2, 24, 8)
    curve = {"epsilons": [0.0, 0.1, 0.2], "errors": [0.0, 0.0, 1.0], "censored": False}
    curves = {"apgd_ce_linf": curve, "worst_linf": curve}
    assert warnings.of_suite(curves, "linf", (0.2, 24, 1)) == warnings.of_suite(curves, "linf") == []
    (line,) = warnings.of_suite(curves, "linf", again)
    assert line.startswith(
        "more restarts still gain: at ε=0.2 the first attack, from another random start, fools 8 of 24"
    )
    assert suites.start_again(suites.Stage("apgd_ce_linf", call, False, 6), None, (0.1,), np.ones((1, 5), bool)) is None


@pytest.mark.parametrize("devices", [4, 1])
def test_a_killed_suite_resumes_also_on_another_number_of_devices(devices, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    options = {"epsilons": EPSILONS[:2], "suite": Suite(**SMALL), **OPTIONS}
    whole = gradalign_jax.evaluate(linear, IMAGE, LABEL, **options)
    record = Workdir.point

    def dying(self, **values):
        if values["measure"].startswith("fab_t_linf 2"):  # its second target
            raise Killed
        record(self, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "point", dying)
        with pytest.raises(Killed):
            gradalign_jax.evaluate(linear, IMAGE, LABEL, workdir=tmp_path, **options)
    monkeypatch.setattr(parallel, "devices", lambda *_: jax.local_devices()[:devices])
    resumed = gradalign_jax.evaluate(linear, IMAGE, LABEL, workdir=tmp_path, **options)
    for result in (whole, resumed):
        for curve in result["curves"].values():
            curve.pop("seconds", None)
    assert resumed == whole
    with pytest.raises(ValueError, match="settings"):
        gradalign_jax.evaluate(linear, IMAGE, LABEL, workdir=tmp_path, **options | {"suite": Suite("malt", **SMALL)})


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown suite 'best': use one of paper, autoattack, malt"):
        gradalign_jax.evaluate(linear, IMAGE, LABEL, epsilons=(0.1,), suite="best")
    with pytest.raises(ValueError, match="unknown norm 'l1'"):
        gradalign_jax.evaluate(linear, IMAGE, LABEL, epsilons=(0.1,), suite="malt", norm="l1")


def test_models_that_make_attacks_weak_are_reported():
    state = {"calls": 0}

    def counting(image):
        return linear(image) + jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32)) * jnp.arange(5.0)[None]

    def count():
        state["calls"] += 1
        return np.float32(state["calls"] % 7)

    def refining(image):
        return linear(image - 0.01 * jax.grad(lambda x: jax.nn.logsumexp(linear(x), -1).sum())(image))

    steps = lambda image: jnp.round(4 * linear(image)) / 4  # noqa: E731
    lines = gradalign_jax.evaluate(
        steps, IMAGE, LABEL, epsilons=(0.1,), suite=Suite("malt", steps=2, targets=1), **OPTIONS
    )["warnings"]
    assert any(
        "no gradient, zero or not a number, on 100.0%" in line and "suite='autoattack'" in line for line in lines
    )
    options = {"epsilons": (0.1,), "pgd": None, "square": None, **OPTIONS}
    for model, named in (
        (counting, "different logits for the same images"),
        (refining, "gradients inside its forward"),
    ):
        lines = gradalign_jax.evaluate(model, IMAGE, LABEL, **options)["warnings"]
        assert any(named in line for line in lines), (model, lines)


@pytest.mark.parametrize("name", ["autoattack", "malt"])
def test_robust_accuracy_is_that_of_the_pytorch_suite(name):
    """Within two images in a hundred, from random starts of their own."""
    peers.adv_lib("attacks.auto_pgd")
    import torch

    from launch.bench.torch_peer import adversarial

    image, label = peers.images(100)
    torch.manual_seed(0)
    images = torch.as_tensor(image).reshape(100, 1, 5, 8)
    peer = lambda x: peers.torch_logits_fn(x.flatten(1))  # noqa: E731
    robust = getattr(adversarial, name)(peer, images, torch.as_tensor(label), 0.02, 20, 60).numpy()
    result = gradalign_jax.evaluate(
        lambda x: peers.logits_fn(x.reshape(len(x), -1)),
        image.reshape(100, 5, 8, 1),
        label,
        epsilons=(0.02,),
        suite=Suite(name, steps=20, queries=60),
        bounds=(0.0, 1.0),
    )
    survived = np.array([by is None for by in result["fooled_by"][0]])
    assert abs(survived.sum() - robust.sum()) <= 2
    assert np.sum(survived != robust) <= 4
    assert 20 < survived.sum() < 80
