"""The estimators of Δx that solve a problem of their own, against closed forms, NumPy and finite differences."""

import itertools
import pkgutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import generators
import gradalign_jax
from configs import spheres, squares32
from gradalign_jax import data, deltax, models, training
from gradalign_jax.deltax import encoder, nearest, patch, sample, score, teacher, transport
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, config_checks, estimates, kept
from gradalign_jax.storage import weights
from gradalign_jax.types import Batch
from test_deltax import MADE, decode, examples

call = jax.jit(lambda delta_x, *batch: delta_x(*batch))  # one program compiles faster than each operation


@pytest.fixture
def batch():
    image, label = examples(8, seed=1)
    return image, label, (label + 1 + np.arange(8) % 2) % 3, np.arange(8)


def test_sample_is_a_uniform_image_of_the_class():
    images, labels = examples()
    x, count = images[:1], 6000
    index, target = np.arange(count), np.arange(count) % 3
    at = jax.jit(sample.make(images, labels))(np.repeat(x, count, axis=0), target, target, index) + x
    match = np.abs(np.asarray(at)[:, None] - images[None]).max(axis=(2, 3, 4)) < 1e-6
    np.testing.assert_array_equal(match.sum(1), 1)
    chosen = match.argmax(1)
    np.testing.assert_array_equal(labels[chosen], target)
    expected = 2000 / np.bincount(labels)[labels]  # visits of each image; their sd is about the root
    assert np.all(np.abs(np.bincount(chosen, minlength=61) - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("hull", patch.HULLS)
def test_patch_of_one_is_the_nearest(hull, batch):
    one = call(patch.make(*examples(), k=1, hull=hull), *batch)
    np.testing.assert_allclose(one, call(nearest.make(*examples()), *batch), atol=1e-6)


def closest(rows):
    """The combination of `rows` `[k, n]` with weights of sum 1 that is closest to 0, by the conditions of Lagrange."""
    gram, k = rows @ rows.T, len(rows)
    system = np.block([[gram, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
    return np.linalg.solve(system, np.append(np.zeros(k), 1.0))[:k]


def closest_in_simplex(rows):
    """The same with weights >= 0: the best feasible solution among those of every face."""
    found = []
    for size in range(1, len(rows) + 1):
        for face in itertools.combinations(range(len(rows)), size):
            w = np.zeros(len(rows))
            w[list(face)] = closest(rows[list(face)])
            if (w >= -1e-12).all():
                found.append((np.linalg.norm(w @ rows), w))
    return min(found, key=lambda each: each[0])[1]


@pytest.mark.parametrize("k", [2, 5])
def test_patch_equals_brute_force(k, batch):
    images, labels = examples()
    simplex = call(patch.make(images, labels, k), *batch)
    affine = call(patch.make(images, labels, k, "affine", ridge=1e-7), *batch)
    for x, target, inside, free in zip(batch[0].astype(float), batch[2], simplex, affine, strict=True):
        rows = (images[labels == target].astype(float) - x).reshape(-1, x.size)
        rows = rows[np.argsort((rows**2).sum(1))[:k]]
        np.testing.assert_allclose(np.ravel(inside), closest_in_simplex(rows) @ rows, atol=1e-4)
        np.testing.assert_allclose(np.ravel(free), closest(rows) @ rows, atol=1e-4)


def test_patch_finds_a_point_inside_and_on_a_face():
    """A triangle around x holds x; beside x, its closest point lies on an edge."""
    corners = np.array([[1, 0], [-1, 1], [-1, -1]], np.float32)
    images, labels = np.concatenate([corners, corners + np.float32([[3, 0]])]), np.repeat([0, 1], 3)
    x, own = np.zeros((1, 2), np.float32), np.array([0])
    delta_x = patch.make(images, labels, k=3)
    np.testing.assert_allclose(call(delta_x, x, own, np.array([0])), 0, atol=1e-4)
    np.testing.assert_allclose(call(delta_x, x, own, np.array([1])), [[2, 0]], atol=1e-4)


def test_sinkhorn_has_uniform_marginals_and_equals_a_numpy_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)) + 1
    cost = ((a[:, None] - b[None]) ** 2).sum(-1)
    f, g = transport.sinkhorn(jnp.float32(cost), 0.5, 200)
    plan = np.exp((np.asarray(f)[:, None] + np.asarray(g)[None] - cost) / 0.5) / 600
    np.testing.assert_allclose(plan.sum(1), 1 / 30, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(0), 1 / 20, rtol=1e-3)
    kernel, v = np.exp(-cost / 0.5), np.ones(20)
    for _ in range(200):
        u = 1 / 30 / (kernel @ v)
        v = 1 / 20 / (kernel.T @ u)
    np.testing.assert_allclose(plan, u[:, None] * kernel * v[None], atol=1e-6)


def test_transport_of_a_moved_class_is_the_move():
    """Two copies of a cloud in another order: with little entropy each point goes to its own copy."""
    rng = np.random.default_rng(1)
    cloud, move = rng.normal(size=(40, 6)).astype(np.float32), np.float32([3, 0, 0, 1, 0, 0])
    images = np.concatenate([cloud, rng.permutation(cloud) + move])
    labels = np.repeat([0, 1], 40)
    delta_x = transport.make(images, labels, epsilon=1e-3, iterations=1000)
    np.testing.assert_allclose(call(delta_x, images, labels, 1 - labels)[:40], np.tile(move, (40, 1)), atol=0.02)


def test_teacher_moves_by_epsilon_along_a_linear_classifier():
    kernel = np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32)
    image = np.random.default_rng(3).uniform(-0.1, 0.1, (5, 6)).astype(np.float32)
    target = np.array([0, 1, 0, 1, 1])
    vector = call(teacher.make(lambda x: x @ kernel, 0.5), image, 1 - target, target)
    towards = kernel.T[target] - kernel.T[1 - target]
    np.testing.assert_allclose(vector, 0.5 * towards / np.linalg.norm(towards, axis=1, keepdims=True), atol=1e-5)


def test_polished_encoder_has_no_larger_loss(batch):
    """With any learning rate, also one that overshoots."""
    made = encoder.make(decode, *examples(), 5, steps=5, hidden=8)

    def loss(delta_x):
        return np.mean(call(delta_x, *batch) ** 2, axis=(1, 2, 3))

    start = loss(made)
    for steps, rate in ((1, 0.03), (20, 0.03), (20, 5.0)):
        polished = loss(encoder.polished(made, steps, penalty=0.0, polish_rate=rate))
        assert np.all(polished <= start + 1e-6)
        assert rate > 1 or np.mean(polished) < np.mean(start)


def test_encoder_of_a_linear_generator_reaches_the_least_squares():
    rng = np.random.default_rng(5)
    basis, offset = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(2, 8)).astype(np.float32)
    images, labels = rng.normal(size=(64, 8)).astype(np.float32), np.arange(64) % 2
    generate = lambda z, c: z @ basis + jnp.asarray(offset)[c]  # noqa: E731
    vector = encoder.make(generate, images, labels, 2, steps=1500, penalty=0.0, hidden=64)(
        images, labels, 1 - labels, None
    )
    rest = images - offset[1 - labels]
    z = np.linalg.lstsq(basis.T.astype(float), rest.T.astype(float), rcond=None)[0].T
    np.testing.assert_allclose(vector, z @ basis - rest, atol=0.15)


def test_score_of_two_gaussians():
    """E[x | x̃, c] = (s² x̃ + σ² μ_c) / (s² + σ²), so Δ̂x = (μ_target - μ_label) σ² / (s² + σ²)."""
    rng = np.random.default_rng(6)
    mean, sd, sigma = rng.normal(size=(2, 6)).astype(np.float32), 0.5, 1.0
    labels = np.arange(2000) % 2
    images = (mean[labels] + sd * rng.normal(size=(2000, 6))).astype(np.float32)
    delta_x = score.make(images, labels, sigma=sigma, steps=1500, hidden=64)
    vector = delta_x(images[:50], labels[:50], 1 - labels[:50], None)
    expected = (mean[1 - labels[:50]] - mean[labels[:50]]) * sigma**2 / (sd**2 + sigma**2)
    error = np.linalg.norm(vector - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.mean() < 0.25  # after a short training


@pytest.mark.parametrize("name", ["centroid", "nearest", "nearest of several", "patch", "patch, affine", "transport"])
def test_derivative_equals_finite_differences(name, batch):
    image, label, target, index = batch
    delta_x = jax.jit(MADE[name]())
    direction = np.random.default_rng(7).normal(size=image.shape).astype(np.float32)
    derivative = jax.jvp(lambda x: delta_x(x, label, target, index), (jnp.asarray(image),), (direction,))[1]
    step = 2e-3
    ahead, behind = (delta_x(image + sign * step * direction, label, target, index) for sign in (1, -1))
    np.testing.assert_allclose(derivative, (ahead - behind) / (2 * step), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: patch.make(*examples(), hull="cone"), "'cone': use one of simplex, affine"),
        (lambda: transport.make(*examples(), epsilon=0.0), "epsilon=0.0"),
        (lambda: teacher.make(lambda x: x, 0.0), "epsilon=0.0"),
        (lambda: encoder.make(decode, examples()[0], np.zeros(61, int)), "2 classes"),
        (lambda: score.make(*examples(), sigma=0.0), "sigma=0.0"),
    ],
)
def test_wrong_options_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


# ---- through the entry point

SQUARES = 48  # images of each split


@pytest.fixture(scope="module")
def squares():
    return data.load("squares32", limit=SQUARES)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A directory of a tiny classifier run and a tiny GAN run, whose generator is replaced by one that compiles fast.

    The networks of Δx train for 2 steps.
    """
    for module in (encoder, score):
        monkeypatch.setattr(module, "make", partial(module.make, steps=2))
    config = squares32.get_config("baseline").to_dict()
    config["model"] = {"name": "flat", "pretrained": ""}
    weights.write(tmp_path / artifacts.CLASSIFIER, flat_classifier(2).init(jax.random.key(0)), config=config)
    _, variables = generators.lively(classes=2, channels=1, width=8)
    shape = {"num_classes": 2, "channels": 1, "width": 8, "latent_dim": 128}
    draw = lambda z, c: jnp.tanh(z @ jnp.ones((128, 1024)) + c[:, None]).reshape(-1, 32, 32, 1)  # noqa: E731
    monkeypatch.setattr(artifacts, "generate_fn", lambda folded, size: draw)
    weights.write(tmp_path / artifacts.GENERATOR, {"raw": variables, "ema": variables}, dataset="squares32", **shape)
    created = models.create
    made = lambda name, **options: flat_classifier(2) if name == "flat" else created(name, **options)  # noqa: E731
    monkeypatch.setattr(models, "create", made)
    return str(tmp_path)


def flat_classifier(classes):
    """A linear classifier of 32 x 32 images."""

    def init(key):
        return {"params": {"kernel": jax.random.normal(key, (1024, classes)) / 32}, "batch_stats": {}}

    def apply(variables, image, train=False):
        return jnp.tanh(image.reshape(len(image), -1) @ variables["params"]["kernel"]), {}

    return gradalign_jax.types.Classifier(init, apply)


NAMES = sorted({module.name for module in pkgutil.iter_modules(deltax.__path__)} - {"vrgan", "projection"})


@pytest.mark.parametrize("name", NAMES)  # whole runs test the other two
def test_trains_and_measures_by_name(name, squares, runs):
    """Every file of deltax/, found by its name, in a step of `align` and in `gradalign_jax.evaluate`."""
    section = squares32.get_config("align").delta_x
    section.name = name
    section.generator = runs if name == "encoder" else ""
    section.teacher, section.teacher_epsilon = (runs, 2.0) if name == "teacher" else ("", 0.0)
    section.penalty = 0.5 if name == "encoder" else 0.0
    section.neighbors = 3 if name in ("nearest", "patch") else 0
    estimate = estimates.load_delta_x(section, squares, "train")
    assert estimate.described["source"] == name
    train, test = squares.splits["train"], squares.splits["test"]
    classifier, optimizer = flat_classifier(2), optax.sgd(0.1)
    state = training.create_state(classifier, optimizer, jax.random.key(1))
    step = jax.jit(training.make_step(classifier, optimizer, "align"))
    inputs = training.StepInputs(weight=0.1, delta_x=estimate.delta_x)
    after, metrics = step(state, Batch(*(rows[:8] for rows in train)), None, inputs)
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(after.variables["params"]["kernel"], state.variables["params"]["kernel"])
    result = gradalign_jax.evaluate(
        lambda x: classifier.apply(state.variables, x)[0],
        *(test.image[:8], test.label[:8]),
        **{"epsilons": (0.1,), "pgd": None, "square": None, "bounds": (-2.0, 2.0), "block": 8},
        delta_x=estimate.delta_x,
        index=test.index[:8],
    )
    assert abs(result["alpha_delta_x"]) <= 1


def test_a_run_keeps_the_network_that_it_trained(squares, runs, tmp_path):
    """A later start has the same bits; it reads them, since another network in the file gives another Δx."""
    test = squares.splits["test"]
    arguments = jnp.asarray(test.image[:4]), test.label[:4], 1 - test.label[:4], test.index[:4]
    section = squares32.get_config("align").delta_x
    for name, generator in (("score", ""), ("encoder", runs)):
        section.name, section.generator = name, generator
        vectors = [
            estimates.load_delta_x(section, squares, "train", folder=folder).delta_x(*arguments)
            for folder in (None, tmp_path, tmp_path)
        ]
        np.testing.assert_array_equal(vectors[0], vectors[1])
        np.testing.assert_array_equal(vectors[0], vectors[2])
    section.penalty = 0.25
    estimates.load_delta_x(section, squares, "train", folder=tmp_path)
    assert len(list(tmp_path.glob("encoder_*.safetensors"))) == 2
    section.name, section.generator, section.penalty = "score", "", 0.0
    (file,) = tmp_path.glob("score_*.safetensors")
    arrays, _ = weights.read(file)
    weights.write(file, jax.tree.map(np.zeros_like, arrays))
    assert not estimates.load_delta_x(section, squares, "train", folder=tmp_path).delta_x(*arguments).any()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(RunError, match="is damaged"):
        estimates.load_delta_x(section, squares, "train", folder=tmp_path)


def test_kept_arrays_keep_their_shapes(tmp_path):
    def make():
        return Partial(lambda scale, x: scale * x, jnp.float32(2.5))

    described = {"source": "scale"}
    first, second = (kept.once(tmp_path, described, make) for _ in range(2))
    assert first.args[0].shape == second.args[0].shape == ()
    assert first(3.0) == second(3.0) == 7.5
    with pytest.raises(RunError, match="holds another estimator's arrays"):
        kept.once(tmp_path, described, lambda: Partial(make().func, jnp.ones(3)))


def test_sampled_data_sets_have_examples():
    section = spheres.get_config("align").delta_x
    section.name = "centroid"
    vector = estimates.load_delta_x(section, data.load("spheres"), "train").delta_x(
        jnp.ones((1, 500)), np.array([0]), np.array([1]), None
    )
    np.testing.assert_allclose(vector, -1, atol=0.02)  # both means are near 0


def test_wrong_directories_are_refused(squares, runs):
    with pytest.raises(RunError, match="generator for squares32, not mnist"):
        estimates.load_encoder(runs, SimpleNamespace(name="mnist"))
    with pytest.raises(RunError, match="trained on squares32, not on mnist"):
        estimates.load_teacher(runs, SimpleNamespace(name="mnist"), 1.0)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "teacher", "teacher_epsilon": 1.0}, "needs config.delta_x.teacher=DIR"),
        ({"name": "teacher", "teacher": "."}, "teacher_epsilon=0.0 must be > 0"),
        ({"name": "centroid", "teacher": "."}, "are both given"),
        ({"teacher": "."}, "without config.delta_x.name=teacher"),
        ({"teacher_epsilon": 1.0}, "and 0 without"),
        ({"name": "encoder"}, "needs config.delta_x.generator=DIR"),
        ({"name": "centroid", "neighbors": 3}, "is read by nearest, patch alone"),
        ({"name": "nearest", "neighbors": -3}, "must be >= 0"),
        ({"name": "nearby"}, "must be one of centroid, encoder"),
    ],
)
def test_wrong_keys_are_named(values, named):
    config = squares32.get_config("align")
    config.delta_x.update(values)
    with pytest.raises(ValueError, match=named):
        config_checks.check(config)


def test_one_estimator_may_not_train_and_measure(tmp_path):
    def sections(**values):
        config = squares32.get_config("align")
        for key, value in values.items():
            config.delta_x["name" if key == "delta_x" else key] = config.evaluate[key] = value
        return config.delta_x, config.evaluate

    for values in ({"delta_x": "patch"}, {"delta_x": "teacher", "teacher": str(tmp_path)}):
        with pytest.raises(ValueError, match="training used"):
            config_checks.check_measuring(*sections(**values))
    trained, measuring = sections(delta_x="encoder", generator=str(tmp_path))
    measuring.generator = str(tmp_path / "other")
    config_checks.check_measuring(trained, measuring)


@pytest.mark.parametrize("name", ["nearest", "centroid", "score"])
def test_a_class_without_images_is_refused(name, squares):
    """Its Δx would be another class's: an index past the last class is clamped."""
    train = squares.splits["train"]
    lacking = data.Split(*(rows[train.label == 0] for rows in train))
    config = spheres.get_config("baseline").evaluate
    config.delta_x = name
    with pytest.raises(RunError, match="none of class 1, to which"):
        estimates.load_delta_x(config, squares._replace(splits={"train": lacking}), "train")
