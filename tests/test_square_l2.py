"""Square Attack in L2 against an independent NumPy implementation, and its driver against one uninterrupted search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax.attacks import square, square_l2

SHAPE = (10, 12, 2)
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(240, 16)).astype(np.float32) / 12, RNG.normal(size=(16, 3)).astype(np.float32)


def model(x, np=jnp):
    return np.tanh(x.reshape(len(x), -1) @ FIRST * 2) @ SECOND


def images(count, scale=0.9):
    image = np.random.default_rng(2).uniform(-scale, scale, (count, *SHAPE)).astype(np.float32)
    label = np.asarray(model(image, np)).argmax(-1)
    label[::7] = (label[::7] + 1) % 3  # misclassified without an attack
    return image, label


def numpy_hill(height, width):
    """Return the published pattern, built by adding one square around the center after another."""
    hill = np.zeros((height, width))
    row, column = height // 2, width // 2
    for m in range(max(height, width) // 2 + 1):
        hill[max(row - m, 0) : row + m + 1, max(column - m, 0) : column + m + 1] += 1 / (m + 1) ** 2
    return hill / np.linalg.norm(hill)


def numpy_pattern(side):
    eta = np.concatenate([numpy_hill(side // 2, side), -numpy_hill(side - side // 2, side)])
    return eta / np.linalg.norm(eta)


def numpy_attack(image, label, epsilon, queries, rng):
    """Attack one image as the paper of Square Attack describes it."""
    height, width, channels = image.shape

    def margin(x):
        logits = model(x[None], np)[0]
        return logits[label] - np.delete(logits, label).max()

    def scaled(change):
        return np.clip(image + change * epsilon / np.linalg.norm(change), -1, 1)

    def eta(side):
        drawn = numpy_pattern(side)
        drawn = drawn.T if rng.random() > 0.5 else drawn
        return drawn[..., None] * rng.choice([-1, 1], channels)

    if margin(image) <= 0:
        return image, 0
    side, change = height // 5, np.zeros(image.shape)
    for row in range(0, height, side):
        for column in range(0, width, side):
            change[row : row + side, column : column + side] = eta(side)
    best = scaled(change)
    value, spent = margin(best), 1
    for i in range(queries - 1):
        if value <= 0:
            break
        it, p = int(i / queries * 10000), 0.8
        for threshold in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            p /= 2 if it > threshold else 1
        side = max(round(np.sqrt(p * height * width)), 3)
        side = min(side + 1 - side % 2, height, width)
        to, away = (
            (slice(row, row + side), slice(column, column + side))
            for row, column in (
                (rng.integers(0, max(height - side, 1)), rng.integers(0, max(width - side, 1))) for _ in range(2)
            )
        )
        change = best - image
        touched = np.zeros(image.shape)
        touched[to] = touched[away] = 1
        energy = (change**2 * touched).sum((0, 1))
        left = max(epsilon**2 - (change**2).sum(), 0) / channels
        new = eta(side) + change[to] / (1e-12 + np.linalg.norm(change[to], axis=(0, 1)))
        new = new / (1e-12 + np.linalg.norm(new, axis=(0, 1))) * np.sqrt(left + energy)
        change[away] = 0
        change[to] = new
        trial = scaled(change)
        found, spent = margin(trial), spent + 1
        if found < value:
            best, value = trial, found
    return (best if value <= 0 else image), spent


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 10])
def test_pattern_equals_one_drawn_square_by_square(side):
    eta = np.asarray(jax.jit(square_l2.pattern, static_argnums=1)(jnp.int32(side), 10))
    np.testing.assert_allclose(eta[:side, :side], numpy_pattern(side), atol=1e-6)
    assert np.all(eta[side:] == 0)
    assert np.all(eta[:, side:] == 0)


@pytest.mark.parametrize("queries", [1, 30, 200])
def test_agrees_with_an_independent_implementation(queries):
    """Success and mean queries at three ε, each within three standard errors."""
    image, label = images(300)
    start, search, *_ = square_l2.parts(queries)

    @jax.jit
    def ours(epsilon):
        keys = jax.random.split(jax.random.key(3), len(label))
        state = start(model, keys, image, label, epsilon)
        return search(model, keys, image, label, epsilon, state, 0, queries - 1)

    for epsilon in (0.1, 0.4, 1.0):
        state = ours(epsilon)
        rng = np.random.default_rng(4)
        theirs = [numpy_attack(x, y, epsilon, queries, rng) for x, y in zip(image, label, strict=True)]
        spent = np.array([q for _, q in theirs])
        logits = model(np.stack([x for x, _ in theirs]), np)
        fooled = np.stack([np.asarray(state.margin) <= 0, logits.argmax(-1) != label])
        rates = fooled.mean(1)
        error = np.sqrt(2 * max(rates.mean() * (1 - rates.mean()), 1e-3) / len(label))
        assert abs(rates[0] - rates[1]) < 3 * error, (epsilon, rates)
        spread = np.std(np.asarray(state.queries) - spent) / np.sqrt(len(spent))
        assert abs(state.queries.mean() - spent.mean()) <= 3 * spread + 1e-6, (epsilon, state.queries.mean())


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.5, 0.7)])
def test_stays_in_ball_and_range_and_reverts_failures(bounds):
    image, label = images(40, scale=0.5)
    epsilon = np.linspace(0, 1.5, 40).astype(np.float32)
    attacked = np.asarray(square_l2.make(60, bounds=bounds)(model, jax.random.key(1), image, label, epsilon))
    size = np.linalg.norm((attacked - image).reshape(40, -1), axis=1)
    assert np.all(size <= epsilon * (1 + 1e-5))
    assert attacked.min() >= np.float32(bounds[0])
    assert attacked.max() <= np.float32(bounds[1])
    before, after = (np.asarray(model(x, np)).argmax(-1) != label for x in (image, attacked))
    moved = np.any(attacked != image, axis=(1, 2, 3))
    np.testing.assert_array_equal(moved, after & ~before)
    assert 3 < moved.sum() < 37
    if bounds == (-1.0, 1.0):  # far from the clamp, the whole budget is used
        np.testing.assert_allclose(size[moved], epsilon[moved], rtol=1e-3)


def test_start_is_a_mosaic():
    """28 x 28: five tiles of side 5 from pixel 1 on, each a pattern or its transpose, in a sign per channel."""
    image = jnp.zeros((3, 28, 28, 2))
    state = square_l2.parts(5).start(
        lambda x: jnp.eye(2)[:1].repeat(3, 0) + 0 * x.sum(), jax.random.key(0), image, jnp.zeros(3, int), 0.5
    )
    change = np.asarray(state.pattern)
    assert np.all(change[:, [0, 26, 27]] == 0)
    assert np.all(change[:, :, [0, 26, 27]] == 0)
    np.testing.assert_allclose(np.linalg.norm(change.reshape(3, -1), axis=1), 0.5, rtol=1e-5)
    tiles = change[:, 1:26, 1:26].reshape(3, 5, 5, 5, 5, 2).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 5, 5)
    eta = numpy_pattern(5) * 0.5 / np.sqrt(50)
    kinds = np.stack([eta, -eta, eta.T, -eta.T])
    distance = np.abs(tiles[:, None] - kinds).max((2, 3))
    assert np.all(distance.min(1) < 1e-6)
    assert np.all(np.bincount(distance.argmin(1), minlength=4) > 20)


def test_compaction_changes_no_decision():
    """`square.run` also drives the L2 search."""
    image, label = images(24)
    epsilons, queries = (0.2, 0.8), 60
    image, label = np.tile(image, (2, 1, 1, 1)), np.tile(label, 2)
    epsilon = np.repeat(np.float32(epsilons), 24)
    keys = jnp.tile(jax.random.split(jax.random.key(5), 24), 2)
    pieces = square_l2.parts(queries)
    start_block = jax.jit(lambda *batch: pieces.start(model, *batch))
    search_block = jax.jit(lambda *batch: pieces.search(model, *batch))
    searched = []

    def fill(rows):
        return np.resize(rows, 48)  # one shape

    def search(rows, state, first, last):
        searched.append(len(rows))
        some = fill(np.arange(len(rows)))
        state = jax.tree.map(lambda leaf: leaf[some], state)
        found = search_block(
            keys[rows[some]], image[rows[some]], label[rows[some]], epsilon[rows[some]], state, first, last
        )
        return jax.tree.map(lambda leaf: leaf[: len(rows)], found)

    compacted = square.run(lambda rows: start_block(keys, image, label, epsilon), search, 48, queries)
    whole = search_block(keys, image, label, epsilon, start_block(keys, image, label, epsilon), 0, queries - 1)
    for got, expected in zip(compacted, whole, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert searched[-1] < searched[0]
    attacked = square_l2.make(queries)(model, keys, image, label, epsilon)
    np.testing.assert_array_equal(model(attacked).argmax(-1) != label, whole.margin <= 0)


def test_an_image_does_not_depend_on_its_batch():
    image, label = images(12)
    keys = jax.random.split(jax.random.key(0), 12)
    attack = square_l2.make(20)
    together = attack(model, keys, image, label, 0.5)
    np.testing.assert_allclose(together[3:5], attack(model, keys[3:5], image[3:5], label[3:5], 0.5), atol=1e-6)


def test_epsilon_is_traced_and_vectors_are_pictures():
    vectors = np.random.default_rng(0).normal(size=(6, 500)).astype(np.float32) / 22
    weight = np.random.default_rng(1).normal(size=500).astype(np.float32)
    linear = lambda x: jnp.stack([x @ weight, -(x @ weight)], -1)  # noqa: E731
    label = np.asarray(linear(vectors)).argmax(-1)
    traces = []

    @jax.jit
    def attack(epsilon):
        traces.append(1)
        return square_l2.make(40)(linear, jax.random.key(0), vectors, label, epsilon)

    fooled = [float((linear(attack(e)).argmax(-1) != label).mean()) for e in (0.01, 0.1, 5.0)]
    assert len(traces) == 1
    assert fooled[0] < fooled[-1] == 1


@pytest.mark.parametrize("arguments", [{"queries": 0}, {"initial_fraction": 1.5}, {"bounds": (1.0, 0.0)}], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="queries must lie in"):
        square_l2.make(**arguments)
