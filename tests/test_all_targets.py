"""The alignment penalty over all other classes: a float64 loop, finite differences, and the closest class's penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradalign_jax import alignment, training
from gradalign_jax.ops import platform
from gradalign_jax.training import all_targets
from gradalign_jax.types import Batch, Classifier

SIZE, COUNT = 7, 6


def parts(classes, seed=0):
    """Images, labels, places, the weights of a small smooth network, and a stored Δx for every place and class."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(size=(COUNT, SIZE)), rng.integers(0, classes, COUNT)
    params = {"w1": rng.normal(size=(SIZE, 9)), "w2": rng.normal(size=(9, classes))}
    return image, label, rng.permutation(20)[:COUNT], params, rng.normal(size=(20, classes, SIZE))


def logits_of(params):
    return lambda x: jnp.tanh(x @ params["w1"]) @ params["w2"]


def stored(vectors):
    return lambda image, label, target, index: jnp.asarray(vectors)[index, target] - image


def cosines(params, vectors, image, label, index):
    forward = lambda x: (logits_of(params)(x), None)  # noqa: E731
    return all_targets.aligned_forward(forward, stored(vectors), image, label, index)[1]


@pytest.mark.parametrize(("name", "classes"), [("cpu", 4), ("gpu", 4), ("cpu", 20)])
def test_cosines_equal_a_float64_loop(name, classes):
    image, label, index, params, vectors = parts(classes)
    with jax.enable_x64(True), platform.target(name):
        found = jax.jit(lambda x: cosines(params, vectors, x, jnp.asarray(label), jnp.asarray(index)))(image)
    assert found.shape == (classes - 1, COUNT)
    for i, (x, y) in enumerate(zip(image, label, strict=True)):
        hidden = np.tanh(x @ params["w1"])
        jacobian = ((1 - hidden**2)[:, None] * params["w2"]).T @ params["w1"].T
        for j in range(1, classes):
            k = (y + j) % classes
            a, b = vectors[index[i], k] - x, jacobian[k] - jacobian[y]
            np.testing.assert_allclose(found[j - 1, i], a @ b / np.sqrt((a @ a) * (b @ b)), rtol=1e-9)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("classes", [3, 18])
def test_the_penaltys_gradient_equals_finite_differences(name, classes):
    """At 18 classes the other classes take turns."""
    image, label, index, params, vectors = parts(classes, 1)
    with jax.enable_x64(True), platform.target(name):
        params = jax.tree.map(jnp.asarray, params)
        arguments = vectors, jnp.asarray(image), jnp.asarray(label), jnp.asarray(index)
        penalty = jax.jit(lambda params: cosines(params, *arguments).sum())
        gradient = jax.grad(penalty)(params)
        for leaf, value in params.items():
            for position in list(np.ndindex(value.shape))[::5]:
                step = jnp.zeros_like(value).at[position].set(1e-5)
                up, down = (penalty({**params, leaf: value + sign * step}) for sign in (1, -1))
                np.testing.assert_allclose(gradient[leaf][position], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)


def step_of(targets, classes, weight=0.3):
    """One training step of a small network; return its parameters and metrics."""
    image, label, index, params, vectors = parts(classes, 2)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def apply(variables, image, train=False):
        return logits_of(variables["params"])(image), variables["batch_stats"]

    classifier = Classifier(lambda key: {"params": params, "batch_stats": {}}, apply)
    optimizer = optax.sgd(0.1)
    step = jax.jit(training.make_step(classifier, optimizer, "align", targets=targets))
    batch = Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.asarray(index, jnp.int32))
    inputs = training.StepInputs(weight=weight, delta_x=jax.tree_util.Partial(stored(vectors.astype(np.float32))))
    state, metrics = step(training.create_state(classifier, optimizer, jax.random.key(0)), batch, None, inputs)
    return state.variables["params"], metrics, (params, vectors, batch)


def test_with_two_classes_all_equals_closest():
    (all_params, all_metrics, _), (params, metrics, _) = (step_of(targets, 2) for targets in ("all", "closest"))
    for name in ("loss", "error", "alignment"):
        np.testing.assert_allclose(all_metrics[name], metrics[name], rtol=1e-5)
    for name, leaf in params.items():
        np.testing.assert_allclose(all_params[name], leaf, rtol=1e-5, atol=1e-6)


def test_the_loss_takes_off_the_sum_and_the_metric_is_the_mean():
    _, metrics, (params, vectors, batch) = step_of("all", 5)
    cosine = cosines(params, vectors.astype(np.float32), *batch)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits_of(params)(batch.image), batch.label).mean()
    np.testing.assert_allclose(metrics["alignment"], cosine.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], entropy - 0.3 * cosine.mean(1).sum(), rtol=1e-5)


def test_closest_is_one_of_the_targets():
    """The alignment with Δx to c̃ is the entry of c̃ among all."""
    image, label, index, params, vectors = parts(5, 3)
    with jax.enable_x64(True):
        arguments = jnp.asarray(image), jnp.asarray(label), jnp.asarray(index)
        every = cosines(params, vectors, *arguments)
        measured = alignment.measure(logits_of(params), stored(vectors), *arguments)
        offset = (measured["target"] - label) % 5 - 1
        np.testing.assert_allclose(every[offset, jnp.arange(COUNT)], measured["alpha_delta_x"], rtol=1e-9)


def test_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="unknown targets 'nearest': use one of closest, all"):
        training.make_step(None, None, "align", targets="nearest")
