"""Alignments against a float64 NumPy loop, the paper's theorems, and finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax import alignment
from gradalign_jax.deltax import exact
from gradalign_jax.ops import platform

CLASSES, SIZE = 5, 7


def two_layers(rng, classes=CLASSES):
    """A small smooth network and, in NumPy, its logits and Jacobian."""
    w1, w2 = rng.normal(size=(SIZE, 11)), rng.normal(size=(11, classes))

    def logits_fn(x):
        return jnp.tanh(x.reshape(x.shape[0], -1) @ w1) @ w2

    def reference(x):
        hidden = np.tanh(x @ w1)
        return hidden @ w2, ((1 - hidden**2)[:, None] * w2).T @ w1.T

    return logits_fn, reference


def cosine(a, b):
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def nearest(logits, jacobian, r):
    distances = [
        np.inf if k == r else (logits[r] - logits[k]) / np.linalg.norm(jacobian[r] - jacobian[k])
        for k in range(len(logits))
    ]
    return int(np.argmin(distances)), distances


@pytest.mark.parametrize(("seed", "classes"), [(0, CLASSES), (1, CLASSES), (2, 21)])
def test_measure_equals_a_float64_loop(seed, classes):
    rng = np.random.default_rng(seed)
    logits_fn, reference = two_layers(rng, classes)
    images, labels = rng.normal(size=(40, SIZE)), rng.integers(0, classes, 40)
    cached = rng.normal(size=(100, classes, SIZE))
    index = rng.permutation(100)[:40]

    with jax.enable_x64(True):
        measured = jax.jit(
            lambda x: alignment.measure_with_theory(
                logits_fn,
                lambda image, label, target, i: jnp.asarray(cached)[i, target] - image,
                x,
                labels,
                index,
            )
        )(images)
    misclassified = 0
    for i, (x, y) in enumerate(zip(images, labels, strict=True)):
        logits, jacobian = reference(x)
        m = int(np.argmax(logits))
        misclassified += m != y
        target, distances = nearest(logits, jacobian, y)
        closest, _ = nearest(logits, jacobian, m)
        expected = {
            "target": target,
            "distance": distances[target],
            "alpha_delta_x": cosine(cached[index[i], target] - x, jacobian[target] - jacobian[y]),
            "alpha_x": abs(cosine(x, jacobian[m])),
            "alpha_x_label": abs(cosine(x, jacobian[y])),
            "alpha_x_target_label": abs(cosine(x, jacobian[target] - jacobian[y])),
            "alpha_x_closest_predicted": abs(cosine(x, jacobian[closest] - jacobian[m])),
            "condition": {m, closest} == {y, target},
            "norm_delta_x": np.linalg.norm(cached[index[i], target] - x),
        }
        assert set(expected) == set(measured)
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name][i], value, rtol=1e-9, err_msg=name)
    assert 0 < misclassified < len(labels)  # both signs of the distance were seen


def test_closest_class_is_signed_and_never_the_reference():
    logits = jnp.array([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]])
    jacobian = jnp.stack([jnp.eye(3), jnp.zeros((3, 3))])
    target, distance = alignment.closest_class(logits, jacobian, jnp.array([0, 0]))
    np.testing.assert_allclose(distance[0], [np.inf, -np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-6)
    assert target.tolist() == [1, 1]
    assert np.all(np.isinf(distance[1]))  # no gradient: no linear step gets anywhere


def test_lemma_1_a_step_of_the_distance_reaches_the_boundary():
    rng = np.random.default_rng(3)
    weights, bias = rng.normal(size=(SIZE, CLASSES)), rng.normal(size=(1, CLASSES))
    image = rng.normal(size=(30, SIZE)).astype(np.float32)
    logits = image @ weights + bias
    label = logits.argmax(-1)
    with jax.enable_x64(True):
        measured = alignment.measure(lambda x: x @ weights + bias, None, jnp.asarray(image.astype(float)), label)
    measured = jax.tree.map(np.asarray, measured)
    for x, y, target, distance in zip(image, label, measured["target"], measured["distance"], strict=True):
        normal = weights[:, target] - weights[:, y]
        moved = (x + distance * normal / np.linalg.norm(normal)) @ weights + bias[0]
        np.testing.assert_allclose(moved[target], moved[y], atol=1e-5)
        np.testing.assert_allclose(moved.max(), moved[y], atol=1e-5)  # no other class is reached earlier


def test_theorem_1_on_pairs_around_a_plane():
    rng = np.random.default_rng(4)
    normal = rng.normal(size=SIZE)

    def logits_fn(x):
        return jnp.stack([-x @ normal, x @ normal], -1)

    first = rng.normal(size=(20, SIZE))
    first -= np.outer((first @ normal + rng.uniform(0.1, 1, 20)) / (normal @ normal), normal)
    second = rng.normal(size=(20, SIZE))
    second += np.outer((rng.uniform(0.1, 1, 20) - second @ normal) / (normal @ normal), normal)
    with jax.enable_x64(True):
        zeros, ones = jnp.zeros(20, int), jnp.ones(20, int)
        there = alignment.measure(logits_fn, lambda *_: second - first, jnp.asarray(first), zeros)
        back = alignment.measure(logits_fn, lambda *_: first - second, jnp.asarray(second), ones)
    np.testing.assert_allclose(there["alpha_delta_x"], back["alpha_delta_x"], atol=1e-5)
    combined = np.linalg.norm(second - first, axis=1) * np.asarray(there["alpha_delta_x"])
    np.testing.assert_allclose(there["distance"] + back["distance"], combined, atol=1e-5)


def test_optimal_spheres_model_has_robustness_over_alignment_015():
    rng = np.random.default_rng(5)
    image = rng.normal(size=(16, 500))
    label = np.arange(16) % 2
    image *= (np.array([1.0, 1.3])[label] / np.linalg.norm(image, axis=1))[:, None]

    def optimal(x):
        score = jnp.linalg.norm(x, axis=-1) - 1.15
        return jnp.stack([-score, score], -1)

    measured = alignment.measure(optimal, exact.spheres, jnp.asarray(image, jnp.float32), jnp.asarray(label))
    np.testing.assert_allclose(measured["alpha_delta_x"], 1, atol=1e-5)
    np.testing.assert_allclose(measured["distance"] / measured["alpha_delta_x"], 0.15, atol=1e-5)


def test_cosine_at_zero_and_at_tiny_vectors_is_finite_to_the_second_derivative():
    ones = jnp.ones((1, 4))
    for vector in (jnp.zeros((1, 4)), jnp.full((1, 4), 1e-30), jnp.full((1, 4), 1e-16)):
        for f in (
            lambda v: alignment.cosine_similarity(v, ones)[0],
            lambda v: alignment.cosine_similarity(ones, v)[0],
        ):
            chex.assert_tree_all_finite((f(vector), jax.grad(f)(vector), jax.hessian(f)(vector)))
    np.testing.assert_allclose(alignment.cosine_similarity(1e-16 * ones, ones), 1, rtol=1e-6)
    np.testing.assert_allclose(alignment.cosine_similarity(ones, 1e30 * ones), 1, rtol=1e-6)


def test_nan_is_not_hidden():
    bad = jnp.array([[np.nan, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(np.isnan(alignment.cosine_similarity(bad, jnp.ones((2, 2)))), [True, False])
    jacobian = jnp.array([[[0.0, 0.0], [np.nan, 1.0], [0.0, 0.0]]])
    _, distance = alignment.closest_class(jnp.array([[1.0, 0.0, 0.5]]), jacobian, jnp.array([0]))
    np.testing.assert_array_equal(distance, [[np.inf, np.nan, np.inf]])


def test_cosine_derivatives_equal_those_of_the_formula():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 6))

    def formula(v):
        return jnp.vdot(v, b) / jnp.sqrt(jnp.vdot(v, v) * jnp.vdot(b, b))

    ours = lambda v: alignment.cosine_similarity(v, b)[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(ours)(a), jax.grad(formula)(a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.hessian(ours)(a), jax.hessian(formula)(a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_penalty_gradient_equals_finite_differences(classes):
    rng = np.random.default_rng(6)
    image, label = rng.normal(size=(3, SIZE)), rng.integers(0, classes, 3)
    vector = rng.normal(size=(classes, SIZE))
    with jax.enable_x64(True):
        params = {
            "w1": jnp.asarray(rng.normal(size=(SIZE, 6))),
            "w2": jnp.asarray(rng.normal(size=(6, classes))),
        }

        @jax.jit
        def penalty(params):
            def logits_fn(x):
                return jnp.tanh(x @ params["w1"]) @ params["w2"], None

            delta_x = lambda x, y, target, i: jnp.asarray(vector)[target] - x  # noqa: E731
            return alignment.aligned_forward(logits_fn, delta_x, jnp.asarray(image), label)[1].mean()

        gradient = jax.grad(penalty)(params)
        for name, value in params.items():
            for position in np.ndindex(value.shape):
                step = jnp.zeros_like(value).at[position].set(1e-5)
                up, down = (penalty({**params, name: value + sign * step}) for sign in (1, -1))
                np.testing.assert_allclose(gradient[name][position], (up - down) / 2e-5, rtol=1e-6, atol=1e-8)


def test_measure_costs_one_forward_and_k_backward_passes():
    passes = {"forward": 0, "backward": 0}

    @jax.custom_vjp
    def features(x):
        return x**2

    def forward(x):
        passes["forward"] += 1
        return x**2, x

    def backward(x, g):
        passes["backward"] += 1
        return (2 * x * g,)

    features.defvjp(forward, backward)
    image = jnp.ones((2, SIZE))
    weights = jnp.ones((SIZE, 1)) * jnp.arange(1.0, CLASSES + 1)[None]
    jax.jit(lambda x: alignment.measure(lambda v: features(v) @ weights, exact.spheres, x, jnp.zeros(2, int)))(image)
    assert passes == {"forward": 1, "backward": CLASSES}


@pytest.mark.parametrize("classes", [3, 20])
def test_the_jacobian_is_the_same_in_every_platforms_form(classes):
    """All rows at once on a GPU, one by one on a CPU, unrolled or in a loop."""
    key = jax.random.key(0)
    weights = jax.random.normal(key, (6, classes))
    image = jax.random.normal(jax.random.fold_in(key, 1), (4, 6))

    def logits_fn(x):
        return jnp.tanh(x) @ weights

    found = []
    for name in ("cpu", "gpu", "tpu"):
        with platform.target(name):
            found.append(alignment.input_jacobian(logits_fn, image)[1])
    expected = jax.vmap(jax.jacrev(lambda x: logits_fn(x[None])[0]))(image)
    for jacobian in found:
        np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-6)


def functions_of(classes, seed=8):
    """Every function that chunks classes, of images, and the images."""
    rng = np.random.default_rng(seed)
    logits_fn, _ = two_layers(rng, classes)
    image = jnp.asarray(rng.normal(size=(6, SIZE)), jnp.float32)
    label, vector = rng.integers(0, classes, 6), rng.normal(size=(classes, SIZE)).astype(np.float32)
    delta_x = lambda x, y, target, i: jnp.asarray(vector)[target] - x  # noqa: E731

    def trained(scale, x):
        return alignment.aligned_forward(lambda v: (scale[None] * logits_fn(v) ** 2, None), delta_x, x, label)[1].sum()

    return image, {
        "measure": lambda x: alignment.measure(logits_fn, delta_x, x, label),
        "by_class": lambda x: alignment.by_class(logits_fn, delta_x, x, label),
        "input_jacobian": lambda x: alignment.input_jacobian(logits_fn, x),
        "target_gradient": lambda x: alignment.target_gradient(logits_fn, x, label),
        "closest_class": lambda x: alignment.closest_class(*alignment.input_jacobian(logits_fn, x), label),
        "aligned_forward": lambda x: jax.value_and_grad(trained)(jnp.arange(1.0, 1 + classes), x),
        "its derivative": lambda x: jax.grad(lambda v: alignment.measure(logits_fn, None, v, label)["distance"].sum())(
            x
        ),
    }


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("classes", [17, 32, 37])
def test_chunks_of_classes_change_nothing_but_rounding(name, classes, monkeypatch):
    image, functions = functions_of(classes)
    with platform.target(name):
        chunked = {key: jax.jit(f)(image) for key, f in functions.items()}
        monkeypatch.setattr(alignment, "_WHOLE", 64)
        whole = {key: jax.jit(f)(image) for key, f in functions_of(classes)[1].items()}
    for key, expected in whole.items():
        chex.assert_trees_all_close(chunked[key], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(chunked["measure"]["target"], whole["measure"]["target"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_many_classes_do_not_need_the_jacobian_in_memory(name):
    classes, pixels, batch = 200, 3000, 4
    full = batch * classes * pixels * 4
    weights = jax.ShapeDtypeStruct((pixels, classes), jnp.float32)
    image, label = jax.ShapeDtypeStruct((batch, pixels), jnp.float32), jnp.arange(batch)
    delta_x = lambda x, y, target, i: -x  # noqa: E731

    def temporary(f):
        def on_weights(w, x):
            return f(lambda v: jnp.tanh(v) @ w, x)

        return jax.jit(on_weights).lower(weights, image).compile().memory_analysis().temp_size_in_bytes

    with platform.target(name):
        assert temporary(lambda f, x: alignment.measure(f, delta_x, x, label)) < full / 2
        assert temporary(lambda f, x: alignment.by_class(f, delta_x, x, label)) < full / 2
        assert temporary(lambda f, x: alignment.target_gradient(f, x, label)) < full / 2
        assert temporary(lambda f, x: alignment.input_jacobian(f, x)) < full / 2  # beside the result
        jacobian = jax.ShapeDtypeStruct((batch, classes, pixels), jnp.float32)
        logits = jax.ShapeDtypeStruct((batch, classes), jnp.float32)
        compiled = jax.jit(alignment.closest_class).lower(logits, jacobian, label).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < full / 2
