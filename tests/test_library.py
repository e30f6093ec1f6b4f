"""`gradalign_jax.evaluate` on a user's models: closed forms, refused arguments, kills, and values that are NaN."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gradalign_jax
from gradalign_jax import CW, PGD, Square
from gradalign_jax.storage.workdir import Workdir


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


DIRECTION = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype(np.float32)


def linear(image):
    score = (image * DIRECTION).sum((1, 2, 3))
    return jnp.stack([-score, score], -1)


def own_images(count=40):
    image = np.random.default_rng(1).uniform(-0.5, 0.5, (count, 4, 4, 1)).astype(np.float32)
    return image, np.asarray(linear(image)).argmax(-1).astype(np.int32)


def test_a_linear_model_has_its_closed_form():
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
    exact = margin / np.abs(DIRECTION).sum()  # distances in L∞: the next larger ε of the grid fools the image
    np.testing.assert_allclose(result["smallest_epsilon"]["pgd_linf"], exact, atol=0.025)
    assert result["accuracy"] == 1
    assert result["alpha_delta_x"] == pytest.approx(1, abs=1e-5)
    assert not any("PGD" in line for line in result["warnings"])
    assert result["classes"] == 2
    # A linear model satisfies the theorems' assumptions: Lemma 1 is exact up to the grid, Theorem 2's bounds coincide.
    theory, norm = result["theory"], np.linalg.norm(DIRECTION)
    assert theory["condition"] == 1
    assert 0.8 < theory["lemma_1_pgd"] <= 1.001
    assert theory["lower_bound"] == pytest.approx(norm / 2, rel=1e-5) == theory["upper_bound"]
    assert result["accuracy_by_class"] == {"0": 1, "1": 1}
    json.dumps(result)


def test_flat_keywords_equal_the_options():
    image, label = own_images(12)
    flat = {"attacks": ("pgd_l2", "square_linf"), "steps": 3, "l2_step_size": 0.3, "l2_epsilons": (0.5, 1.0)}
    options = {"pgd": PGD(("l2",), 3, 0.1, 0.3, (0.5, 1.0), "margin"), "square": Square(15), "cw": CW(images=2)}
    shared = {"epsilons": (0.1, 0.2), "block": 12}
    first = gradalign_jax.evaluate(linear, image, label, step_size=0.1, loss="margin", queries=15, **flat, **shared)
    second = gradalign_jax.evaluate(linear, image, label, **options | {"cw": None}, **shared)
    assert first == second
    assert set(first["curves"]) == {"pgd_l2", "square_linf"}
    assert gradalign_jax.evaluate(linear, image, label, pgd=None, square=None, **shared)["curves"] == {}
    with pytest.raises(TypeError, match="no argument 'step'"):
        gradalign_jax.evaluate(linear, image, label, step=3, **shared)


def test_carlini_and_wagner_finds_the_hyperplane_and_a_coarse_descent_is_reported():
    image, label = own_images(6)
    options = {"epsilons": (0.1,), "square": None, "block": 6}
    grid = tuple(np.linspace(0.02, 1, 50))
    white = PGD(("l2",), 20, l2_step_size=0.1, l2_epsilons=grid, loss="margin")
    fine = gradalign_jax.evaluate(
        linear, image, label, pgd=white, cw=CW(images=6, iterations=400, learning_rate=0.01), **options
    )
    exact = np.abs((image * DIRECTION).sum((1, 2, 3))) / np.linalg.norm(DIRECTION)
    np.testing.assert_allclose(fine["linearity"]["carlini_wagner"], exact, rtol=0.03, atol=0.003)
    assert not any("Carlini" in line for line in fine["warnings"])
    coarse = gradalign_jax.evaluate(
        linear, image, label, pgd=white, cw=CW(images=6, iterations=4, learning_rate=2.0), **options
    )
    assert any("lower its learning rate" in line for line in coarse["warnings"])


def test_nan_in_delta_x_is_reported():
    image, label = own_images(10)
    options = {"epsilons": (0.1,), "pgd": None, "square": None, "block": 10}
    result = gradalign_jax.evaluate(
        linear, image, label, delta_x=lambda x, y, t, i: jnp.where((i < 3)[:, None, None, None], jnp.nan, x), **options
    )
    assert result["alpha_delta_x"] is None
    assert result["alpha_x"] is not None
    assert any("alpha_delta_x is not a number on 3 of 10 images" in line for line in result["warnings"])


def test_explicit_bounds_accept_one_bright_image():
    image, label = np.full((1, 4, 4, 1), 0.5, np.float32), np.array([1], np.int32)
    options = {"epsilons": (0.1,), "pgd": None, "square": None}
    with pytest.raises(ValueError, match=r"look like \[0, 1\]"):
        gradalign_jax.evaluate(linear, image, label, **options)
    assert gradalign_jax.evaluate(linear, image, label, bounds=(-1, 1), **options)["images"] == 1


def test_softmax_outputs_are_reported():
    image, label = own_images(10)
    options = {"epsilons": (0.1,), "pgd": None, "square": None, "block": 10}
    for function, named in ((jax.nn.softmax, "return probabilities"), (jax.nn.log_softmax, "return log-probabilities")):
        result = gradalign_jax.evaluate(lambda x, function=function: function(linear(x)), image, label, **options)
        assert any(named in line for line in result["warnings"])
    assert not gradalign_jax.evaluate(linear, image, label, **options)["warnings"]


def test_arguments_are_checked():
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
    fails("index has shape", index=np.arange(7))
    for index in (np.arange(8) - 1, np.arange(8) + 0.5, np.arange(8) + 2**31):
        fails("index must hold integers from 0", index=index)
    fails("unknown norm 'l1'", pgd=PGD(("l1",)))
    fails("cw.learning_rate=0", cw=CW(learning_rate=0))
    fails("norm='l2' needs a suite", norm="l2")
    fails("norm='l2' needs a suite", square=Square(norm="l2"))
    for option in (PGD, Square):
        with pytest.raises(ValueError, match="unknown precision 'float16'"):
            option(precision="float16")


def test_nan_counts_as_wrong():
    """A model whose gradient is NaN on half of the images, and models whose logits are NaN."""
    image, label = own_images(40)
    options = {"epsilons": (0.5, 5.0), "bounds": (-9.0, 9.0), "steps": 3, "queries": 20, "block": 20}

    @jax.custom_vjp
    def with_nan_gradient(x, bad):
        return x

    with_nan_gradient.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), None))

    def blind(x):
        return linear(with_nan_gradient(x, (x[:, :1, :1] > 0)))

    result = gradalign_jax.evaluate(blind, image, label, **options)
    assert result["accuracy"] == 1
    assert any("no gradient, zero or not a number" in line for line in result["warnings"])
    nothing = gradalign_jax.evaluate(lambda x: linear(x) * jnp.nan, image, label, **options)
    assert nothing["accuracy"] == 0
    for curve in nothing["curves"].values():
        assert curve["errors"] == [1, 1, 1]
    assert any("not a number, on 100.0% of the images" in line for line in nothing["warnings"])
    # NaN outside the images' range, which only attacks reach.
    within = float(np.abs(image).max())

    def broken(x):
        return jnp.where(jnp.abs(x).max((1, 2, 3))[:, None] > within + 1e-6, jnp.nan, linear(x))

    for name, curve in gradalign_jax.evaluate(broken, image, label, **options)["curves"].items():
        assert curve["errors"][0] == 0, name
        assert curve["errors"][1] > 0.9, name  # a random start may stay in that range
        assert curve["errors"][2] == 1, name


def test_grids_may_be_arrays(tmp_path):
    image, label = own_images(8)
    options = {"attacks": ("pgd_linf",), "steps": 1}
    plain = gradalign_jax.evaluate(linear, image, label, epsilons=(0.25, 0.5), **options)
    for name, library in (("numpy", np), ("jax", jnp)):  # one directory each, so that both are computed
        given = library.array([0.25, 0.5], "float32")
        result = gradalign_jax.evaluate(linear, image, label, epsilons=given, workdir=tmp_path / name, **options)
        assert result == plain


def test_a_killed_call_resumes(tmp_path, monkeypatch):
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
    precise = {"square": Square(20, precision="bfloat16")}
    for changed in ({"seed": 1}, {"steps": 3}, precise):
        with pytest.raises(ValueError, match="settings"):
            gradalign_jax.evaluate(linear, image, label, **options | changed)
    with pytest.raises(ValueError, match="another logits_fn"):
        gradalign_jax.evaluate(lambda x: 1.01 * linear(x), image, label, **options)


def test_a_repeated_call_may_round_differently_and_use_another_delta_x(tmp_path):
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


def test_flax_models_and_models_without_gradients():
    """Flax, and a closure over arrays; only some attacks; a model without gradients is warned of."""
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
