"""Square Attack against an independent NumPy implementation, and its driver against one uninterrupted search."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax import data, models, parallel
from gradalign_jax.attacks import losses, square
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.types import Classifier

SHAPE = (8, 9, 2)
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(144, 16)).astype(np.float32) / 12, RNG.normal(size=(16, 3)).astype(np.float32)


def model(x, np=jnp):
    return np.tanh(x.reshape(len(x), -1) @ FIRST * 2) @ SECOND


def images(count, scale=0.9):
    rng = np.random.default_rng(2)
    image = rng.uniform(-scale, scale, (count, *SHAPE)).astype(np.float32)
    label = np.asarray(model(image, np)).argmax(-1)
    label[::7] = (label[::7] + 1) % 3  # misclassified without an attack
    return image, label


def numpy_attack(image, label, epsilon, queries, rng):
    """Attack one image as the paper of Square Attack describes it; windows move an iterate by ±2ε and are clipped."""

    def margin(x):
        logits = model(x[None], np)[0]
        return logits[label] - np.delete(logits, label).max()

    height, width, channels = image.shape
    if margin(image) <= 0:
        return image, 0
    best = np.clip(image + rng.choice([-epsilon, epsilon], (1, width, channels)), -1, 1)
    value, spent = margin(best), 1
    for i in range(queries - 1):
        if value <= 0:
            break
        it, p = int(i / queries * 10000), 0.8
        for threshold in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            p /= 2 if it > threshold else 1
        side = max(round(np.sqrt(p * height * width)), 1)
        row, column = rng.integers(0, max(height - side, 1)), rng.integers(0, max(width - side, 1))
        delta = np.zeros_like(image)
        delta[row : row + side, column : column + side] = rng.choice([-2 * epsilon, 2 * epsilon], channels)
        trial = np.clip(np.clip(best + delta, image - epsilon, image + epsilon), -1, 1)
        found, spent = margin(trial), spent + 1
        if found < value:
            best, value = trial, found
    return (best if value <= 0 else image), spent


@pytest.mark.parametrize("queries", [3, 30, 200])
def test_agrees_with_an_independent_implementation(queries):
    """Success and mean queries at three ε, each within three standard errors."""
    image, label = images(300)
    start, search, *_ = square.parts(queries)

    @jax.jit
    def ours(epsilon):
        keys = jax.random.split(jax.random.key(3), len(label))
        state = start(model, keys, image, label, epsilon)
        return search(model, keys, image, label, epsilon, state, 0, queries - 1)

    for epsilon in (0.02, 0.06, 0.15):
        state = ours(epsilon)
        rng = np.random.default_rng(4)
        theirs = [numpy_attack(x, y, epsilon, queries, rng) for x, y in zip(image, label, strict=True)]
        spent = np.array([q for _, q in theirs])
        logits = model(np.stack([x for x, _ in theirs]), np)
        fooled = np.stack([np.asarray(state.margin) <= 0, logits.argmax(-1) != label])
        rates = fooled.mean(1)
        error = np.sqrt(2 * max(rates.mean() * (1 - rates.mean()), 1e-3) / len(label))
        assert abs(rates[0] - rates[1]) < 3 * error, (epsilon, rates)
        # The images are the same, so only the search's own randomness separates the means.
        spread = np.std(np.asarray(state.queries) - spent) / np.sqrt(len(spent))
        assert abs(state.queries.mean() - spent.mean()) <= 3 * spread + 1e-6, (
            epsilon,
            state.queries.mean(),
            spent.mean(),
        )


def test_more_queries_and_larger_epsilon_fool_more():
    image, label = images(200)
    rates = np.zeros((3, 3))
    for column, queries in enumerate((1, 10, 100)):
        search = square.make(queries)
        attack = jax.jit(partial(search, model, jax.random.key(0), image, label))
        for row, epsilon in enumerate((0.02, 0.06, 0.15)):
            rates[row, column] = (model(attack(epsilon)).argmax(-1) != label).mean()
    assert np.all(np.diff(rates, axis=1) > 0)
    assert np.all(np.diff(rates, axis=0) > 0)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.5, 0.7)])
def test_stays_in_ball_and_range_and_reverts_failures(bounds):
    image, label = images(40, scale=0.5)
    epsilon = np.linspace(0, 0.3, 40).astype(np.float32)
    attacked = np.asarray(square.make(60, bounds=bounds)(model, jax.random.key(1), image, label, epsilon))
    assert np.all(np.abs(attacked - image).max((1, 2, 3)) <= epsilon * (1 + 1e-5) + 1e-7)
    assert attacked.min() >= bounds[0]
    assert attacked.max() <= bounds[1]
    before, after = (np.asarray(model(x, np)).argmax(-1) != label for x in (image, attacked))
    moved = np.any(attacked != image, axis=(1, 2, 3))
    np.testing.assert_array_equal(moved, after & ~before)  # failures and misclassified images come back unchanged
    assert 3 < moved.sum() < 37


def test_zero_epsilon_is_the_identity():
    image, label = images(10)
    attacked = square.make(5)(model, jax.random.key(1), image, label, 0.0)
    np.testing.assert_array_equal(attacked, image)


def test_windows_follow_the_schedule():
    """Sides by hand: 28 x 28 starts at 25, 20 x 25 at 20; after 10 of 10,000 queries half the pixels."""
    side = lambda i, pixels, queries: int(square.side_length(jnp.int32(i), pixels, queries, 0.8))  # noqa: E731
    assert [side(0, n, 5000) for n in (28 * 28, 32 * 32, 224 * 224, 500)] == [25, 29, 200, 20]
    assert side(5, 784, 5000) == 25
    assert side(6, 784, 5000) == round((0.4 * 784) ** 0.5)
    assert side(4999, 784, 5000) == 1
    assert side(1, 784, 100) == round((0.2 * 784) ** 0.5)  # 100 of 10,000
    assert square.picture_shape((500,)) == (20, 25, 1)


def test_window_positions_and_signs_match_the_published_code():
    """Corners are uniform on 0 .. size - side - 1, signs are one per channel."""
    blank = jnp.zeros((2000, 5, 7, 2), jnp.int8)
    keys = jax.random.split(jax.random.key(0), 2000)
    sign = np.asarray(jax.vmap(square._repaint, (0, None, None, 0))(keys, 3, 2, blank))
    assert np.all((sign != 0).sum((1, 2, 3)) == 2 * 2 * 2)
    rows = (sign != 0).any((2, 3)).argmax(1)
    columns = (sign != 0).any((1, 3)).argmax(1)
    np.testing.assert_allclose(np.bincount(rows, minlength=3) / 2000, 1 / 3, atol=0.04)
    np.testing.assert_allclose(np.bincount(columns, minlength=5) / 2000, 1 / 5, atol=0.04)
    per_channel = sign.sum((1, 2)) / 4
    assert set(per_channel.ravel()) == {-1, 1}
    assert abs(per_channel.mean()) < 0.06
    assert abs((per_channel[:, 0] * per_channel[:, 1]).mean()) < 0.06


def test_compaction_changes_no_decision():
    """Survivors of many (image, ε) pairs, packed into blocks, decide as if no pair had left."""
    image, label = images(37)
    epsilons, queries, block = (0.02, 0.06, 0.15), 150, 16
    image, label = np.tile(image, (3, 1, 1, 1)), np.tile(label, 3)
    epsilon = np.repeat(np.float32(epsilons), 37)
    keys = jnp.tile(jax.random.split(jax.random.key(5), 37), 3)
    pieces = square.parts(queries)
    start_block = jax.jit(lambda *batch: pieces.start(model, *batch))
    search_block = jax.jit(lambda *batch: pieces.search(model, *batch))
    searched, traces = [], []

    def blocks(program, rows, *state_and_ends):
        results = []
        for first in range(0, len(rows), block):
            some = np.arange(first, first + block).clip(max=len(rows) - 1)
            chosen = rows[some]
            state = [square.State(*(leaf[some] for leaf in s)) for s in state_and_ends[:1]]
            results.append(
                program(keys[chosen], image[chosen], label[chosen], epsilon[chosen], *state, *state_and_ends[1:])
            )
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *results)

    def search(rows, *rest):
        searched.append(len(rows))
        return blocks(search_block, rows, *rest)

    compacted = square.run(
        lambda rows: blocks(start_block, rows), search, len(label), queries, lambda *t: traces.append(t)
    )
    everyone = np.arange(len(label))
    whole = blocks(search_block, everyone, blocks(start_block, everyone), 0, queries - 1)
    for got, expected in zip(compacted, whole, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert searched == sorted(searched, reverse=True)
    assert searched[-1] < searched[0]  # some pairs left
    assert search_block._cache_size() == start_block._cache_size() == 1
    assert traces[0][0] == 1
    attacked = square.make(queries)(model, keys, image, label, epsilon)
    np.testing.assert_array_equal(model(attacked).argmax(-1) != label, whole.margin <= 0)


def test_an_empty_active_set_is_a_no_op():
    image, _ = images(4)
    label = np.asarray(model(image, np)).argmin(-1)  # all misclassified
    calls = []

    def start(rows):
        return square.parts(50).start(model, jax.random.key(0), image[rows], label[rows], 0.1)

    state = square.run(start, lambda *_: calls.append(1), 4, 50)
    assert not calls
    assert np.all(state.queries == 0)
    np.testing.assert_array_equal(square.make(50)(model, jax.random.key(0), image, label, 0.1), image)


def test_an_image_does_not_depend_on_its_batch():
    image, label = images(12)
    keys = jax.random.split(jax.random.key(0), 12)
    attack = square.make(20)
    together = attack(model, keys, image, label, 0.1)
    np.testing.assert_allclose(together[3:5], attack(model, keys[3:5], image[3:5], label[3:5], 0.1), atol=1e-6)


def test_epsilon_is_traced_and_vectors_are_pictures():
    vectors = np.random.default_rng(0).normal(size=(6, 500)).astype(np.float32) / 22
    weight = np.random.default_rng(1).normal(size=500).astype(np.float32)
    linear = lambda x: jnp.stack([x @ weight, -(x @ weight)], -1)  # noqa: E731
    label = np.asarray(linear(vectors)).argmax(-1)
    traces = []

    @jax.jit
    def attack(epsilon):
        traces.append(1)
        return square.make(40)(linear, jax.random.key(0), vectors, label, epsilon)

    fooled = [float((linear(attack(e)).argmax(-1) != label).mean()) for e in (0.001, 0.01, 0.5)]
    assert len(traces) == 1
    assert fooled[0] < fooled[-1] == 1


def test_a_large_set_does_not_depend_on_devices():
    """Blocks of survivors on 1 and 3 devices, against every pair searched to the end in blocks of the same shape."""
    classifier = models.create("mlp", hidden=(16,), input_size=144)
    flat = Classifier(classifier.init, lambda v, x, train=False: classifier.apply(v, x.reshape(len(x), -1)))
    variables, (image, _) = flat.init(jax.random.key(0)), images(20)
    label = np.asarray(flat.apply(variables, image)[0]).argmax(-1).astype(np.int32)
    split, epsilons, key = (
        data.Split(image, label, np.arange(20, dtype=np.int32)),
        (0.05, 0.2, 0.5),
        jax.random.key(1),
    )
    found = []
    for devices in (1, 3):
        on = parallel.devices(devices, 3)
        evaluation = Evaluation(
            flat, split, on=on, block=8, key=key, attacks={}, delta_x=None, black_box=square.parts(60)
        )
        found.append(evaluation.square(parallel.replicate(variables, on), epsilons, 60))
    chex.assert_trees_all_equal(*found)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(20))
    logits_fn = lambda x: flat.apply(variables, x)[0]  # noqa: E731
    attack = jax.jit(lambda e: square.make(60)(logits_fn, keys, image, label, e))
    alone = np.stack([np.asarray(logits_fn(attack(e))).argmax(-1) != label for e in epsilons])
    assert 3 < alone.sum() < 57
    assert (alone != found[0]["fooled"]).sum() <= 1  # 20 rows at once round differently from blocks of 8


@pytest.mark.parametrize("arguments", [{"queries": 0}, {"initial_fraction": 1.5}, {"bounds": (1.0, 0.0)}], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="queries must lie in"):
        square.make(**arguments)


def test_the_reported_logits_decide_which_images_are_fooled():
    """The reported logits decide which images are fooled; the others stay in the search."""
    pieces = square.parts(50)
    image, label = jnp.zeros((3, 4, 4, 1)), jnp.zeros(3, jnp.int32)
    sign = jnp.asarray(np.array([1, 1, -1]).reshape(3, 1, 1, 1) * np.ones((3, 4, 4, 1)), jnp.int8)
    state = square.State(sign, jnp.array([-0.1, 0.2, 0.3]), jnp.full(3, 7))

    def logits_fn(x):  # margin logit_0 - logit_1 = 0.5 - the pixels' mean
        return jnp.stack([0.5 - x.mean((1, 2, 3)), jnp.zeros(len(x))], -1)

    decided = pieces.decide(logits_fn, image, label, jnp.array([0.25, 0.75, 0.25]), state)
    # Fooled in the search only: continues. In the reported logits only: fooled. In neither: keeps its margin.
    np.testing.assert_allclose(decided.margin, [0.25, -0.25, 0.3])
    np.testing.assert_array_equal(decided.pattern, sign)


def tied_logits(x):
    """Return quantized logits: classes 0 and 1 tie at the top, 2 and 3 below."""
    level = jnp.floor(2 * x.mean((1, 2, 3)))
    return jnp.stack([level, level, level - 1, level - 1], -1)


@pytest.mark.parametrize("logits_fn", [tied_logits, lambda x: jnp.zeros((len(x), 4)) + 0 * x.sum()], ids=["two", "all"])
def test_a_tie_is_fooled_where_argmax_does_not_give_the_label(logits_fn):
    """The start, the search and the decision all count ties by argmax."""
    label = jnp.array([0, 1, 2, 3])
    image = jnp.full((4, 4, 4, 1), 0.1)
    pieces = square.parts(20)
    key, epsilon = jax.random.key(0), 0.05  # too small to change a level
    state = pieces.start(logits_fn, key, image, label, epsilon)
    right = np.asarray(logits_fn(image)).argmax(-1) == np.asarray(label)
    np.testing.assert_array_equal(right, [True, False, False, False])
    np.testing.assert_array_equal(state.margin > 0, right)
    np.testing.assert_array_equal(state.queries > 0, right)  # the others are not attacked
    state = pieces.search(logits_fn, key, image, label, epsilon, state, 0, 19)
    np.testing.assert_array_equal(state.queries, 20 * right)
    decided = pieces.decide(logits_fn, image, label, epsilon, state._replace(margin=jnp.full(4, -1.0)))
    np.testing.assert_array_equal(decided.margin > 0, right)
    np.testing.assert_array_equal(pieces.attacked(image, epsilon, decided), image)


def test_a_search_accepts_a_tie_that_argmax_gives_to_another_class():
    """Class 0 loses by 1 until the mean rises above 0; then it ties with the label, and argmax gives class 0."""
    image, label = jnp.full((6, 4, 4, 1), -0.01), jnp.ones(6, jnp.int32)

    def logits_fn(x):
        return jnp.stack([jnp.where(x.mean((1, 2, 3)) > 0, 1.0, 0.0), jnp.ones(len(x))], -1)

    attacked = square.make(50)(logits_fn, jax.random.key(0), image, label, 0.1)
    logits = np.asarray(logits_fn(attacked))
    np.testing.assert_array_equal(logits, 1)  # tied
    assert np.all(logits.argmax(-1) != np.asarray(label))
    assert np.all(np.any(attacked != image, axis=(1, 2, 3)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_deciding_margin_is_positive_where_the_prediction_is_the_label(dtype):
    values = np.array([0.0, 1.0, -2.0, np.inf, np.nan])
    logits = jnp.asarray(np.stack(np.meshgrid(values, values, values), -1).reshape(-1, 3), dtype)
    for label in range(3):
        labels = jnp.full(len(logits), label)
        expected = [not np.isnan(row).any() and int(np.argmax(row)) == label for row in np.asarray(logits, float)]
        np.testing.assert_array_equal(losses.deciding_margin(logits, labels) > 0, expected)
        untied = np.asarray(losses.margin(logits, labels), float)
        clear = np.isfinite(untied) & (untied != 0)
        np.testing.assert_array_equal(np.asarray(losses.deciding_margin(logits, labels), float)[clear], -untied[clear])
