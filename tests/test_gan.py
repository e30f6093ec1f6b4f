"""The conditional GAN: its networks and losses against PyTorch and NumPy, its iteration, and whole runs of the task."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import mnist, squares32
from gradalign_jax import data, parallel, training
from gradalign_jax.data import pipeline
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, config_checks
from gradalign_jax.experiment.subject import create_classifier
from gradalign_jax.models import biggan, spectral_norm
from gradalign_jax.storage import weights
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import gan as task
from gradalign_jax.training import gan
from gradalign_jax.types import Batch

CLASSES, CHANNELS, WIDTH, LATENT = 3, 1, 6, 5
SHAPE = {"num_classes": CLASSES, "channels": CHANNELS, "width": WIDTH}
OPTIMIZER = training.adam(2e-4, b1=0.0, b2=0.999)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def networks(**options):
    generator = biggan.create_generator(**SHAPE, latent_dim=LATENT, **options)
    return generator, biggan.create_discriminator(**SHAPE)


def random_state():
    """Return a state without any initial value; in float64 if 64 bits are enabled."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = {"kernel": 0.5, "u": 1.0}.get(path[-1].key, 0.2)
        value = rng.normal(size=leaf.shape) * scale
        return jnp.asarray(1 + np.abs(value) if path[-1].key in ("var", "scale") else value)

    with jax.enable_x64(False):
        shapes = jax.eval_shape(lambda key: [network.init(key) for network in networks()], jax.random.key(0))
    g, d = jax.tree_util.tree_map_with_path(draw, shapes)
    return gan.GanState(g, d, g, OPTIMIZER.init(g["params"]), OPTIMIZER.init(d["params"]), jnp.zeros((), jnp.int32))


def real_images(d_steps=2, batch=4):
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (d_steps, batch, 32, 32, CHANNELS))
    label = np.arange(d_steps * batch, dtype=np.int32).reshape(d_steps, batch) % CLASSES
    return Batch(jnp.asarray(image), jnp.asarray(label), jnp.zeros_like(label))


def make_step(generator, discriminator, **options):
    return gan.make_step(generator, discriminator, OPTIMIZER, num_classes=CLASSES, latent_dim=LATENT, **options)


@pytest.mark.parametrize(
    ("classes", "channels", "expected"),
    [(10, 3, (4_304_387, 4_207_371)), (10, 1, (4_299_777, 4_202_251)), (2, 1, (4_275_201, 4_200_195))],
)
def test_numbers_of_parameters_are_the_authors(classes, channels, expected):
    made = biggan.create_generator(classes, channels), biggan.create_discriminator(classes, channels)
    shapes = [jax.eval_shape(network.init, jax.random.key(0))["params"] for network in made]
    assert tuple(map(task.count, shapes)) == expected


def test_initial_weights():
    variables = biggan.create_generator(10, 3, width=64).init(jax.random.key(0))["params"]
    for value in (variables["block1"]["conv1"]["kernel"], variables["linear"]["kernel"]):
        assert abs(float(value.std()) - 0.02) < 1e-3
    assert abs(float(variables["block0"]["norm1"]["gain"].std()) - 0.02) < 2e-3
    bias = np.abs(variables["linear"]["bias"])
    assert 0.95 * 128**-0.5 < bias.max() <= 128**-0.5


def test_power_iterations_reach_the_largest_singular_value():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    u = jax.random.normal(jax.random.key(1), (5,))
    for _ in range(100):
        sigma, u = spectral_norm.power_iteration(kernel, u)
    left, values, right = np.linalg.svd(np.float64(kernel).reshape(-1, 5), full_matrices=False)
    np.testing.assert_allclose(sigma, values[0], rtol=1e-5)
    gradient = jax.grad(lambda k: spectral_norm.power_iteration(k, u)[0])(kernel)
    np.testing.assert_allclose(gradient.reshape(-1, 5), np.outer(left[:, 0], right[0]), atol=1e-5)


def test_only_training_mode_updates_statistics():
    generator, _ = networks()
    apply, variables = compiled(generator.apply, static_argnames="train"), random_state().generator
    arguments = jax.random.normal(jax.random.key(1), (4, LATENT)), jnp.array([0, 1, 2, 0])
    _, state = apply(variables, *arguments)
    chex.assert_trees_all_equal(state, {name: variables[name] for name in ("batch_stats", "spectral")})
    _, state = apply(variables, *arguments, train=True)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, {name: variables[name] for name in state})
    moved["spectral"].pop("conv")  # one output: its u is 1 or -1 and stays
    variables["spectral"].pop("conv")
    assert all(jax.tree.leaves(moved))


def test_multi_hinge_equals_a_loop():
    rng = np.random.default_rng(0)
    scores, label = rng.normal(size=(20, 4)) * 2, rng.integers(4, size=20)
    losses = [max(0, 1 + max(np.delete(row, t)) - row[t]) for row, t in zip(scores, label, strict=True)]
    assert min(losses) == 0 < max(losses)
    with jax.enable_x64(True):
        np.testing.assert_allclose(biggan.multi_hinge(jnp.asarray(scores), jnp.asarray(label)), np.mean(losses))


def test_bfloat16_products_stay_close():
    arguments = jax.random.normal(jax.random.key(1), (8, LATENT)), jnp.arange(8) % CLASSES
    variables = random_state().generator
    applies = [compiled(networks(dtype=d)[0].apply, static_argnames="train") for d in (None, jnp.bfloat16)]
    image = [apply(variables, *arguments, train=True)[0] for apply in applies]
    assert image[1].dtype == jnp.float32
    assert 0 < np.abs(image[0] - image[1]).max() < 0.05 * np.abs(image[0]).max()


class TestTorch:
    """The networks and iterations in PyTorch, with equal weights and inputs, in float64."""

    @pytest.fixture(autouse=True)
    def one_thread(self):
        """Limit PyTorch to one thread: on a busy machine its threads mostly wait for each other."""
        torch = pytest.importorskip("torch")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def peers(self, state):
        from launch.bench.torch_peer import biggan as peer

        g, d = peer.Generator(CLASSES, CHANNELS, WIDTH, LATENT), peer.Discriminator(CLASSES, CHANNELS, WIDTH)
        g, d = (peer.load_flax(n.double(), v) for n, v in ((g, state.generator), (d, state.discriminator)))
        return peer, g, d

    def latents(self, keys, d_steps):
        import torch

        drawn = [gan.draw_latents(keys, draw, CLASSES, LATENT) for draw in range(d_steps)]
        return [(torch.tensor(np.array(z)), torch.tensor(np.array(y)).long()) for z, y in drawn]

    def images(self, batch):
        import torch

        nchw = np.array(batch.image).transpose(0, 1, 4, 2, 3)
        return [(torch.tensor(x), torch.tensor(np.array(t)).long()) for x, t in zip(nchw, batch.label, strict=True)]

    def same(self, peer, ours, module, generator, rtol=1e-8):
        theirs = module.state_dict()
        for name, value in peer.flax_to_torch(ours, generator).items():
            np.testing.assert_allclose(value, theirs[name], rtol=rtol, atol=1e-10, err_msg=name)

    def test_networks_agree_over_several_passes(self):
        with jax.enable_x64(True):
            state, batch = random_state(), real_images()
            peer, g, d = self.peers(state)
            g_apply, d_apply = (compiled(network.apply, static_argnames="train") for network in networks())
            (z, y), (x, _) = self.latents(jax.random.split(jax.random.key(2), 4), 1)[0], self.images(batch)[0]
            arguments = jnp.asarray(z.numpy()), jnp.asarray(y.numpy())
            for train in (True, True, True, False):
                g.train(train), d.train(train)
                image, moved = g_apply(state.generator, *arguments, train=train)
                np.testing.assert_allclose(image, g(z, y).detach().permute(0, 2, 3, 1), atol=1e-10)
                scores, features, seen = d_apply(state.discriminator, batch.image[0], train=train)
                for value, expected in zip((scores, features), d(x), strict=True):
                    np.testing.assert_allclose(value, expected.detach(), rtol=1e-9)
                state = state._replace(
                    generator={**state.generator, **moved}, discriminator={**state.discriminator, **seen}
                )
                self.same(peer, state.generator, g, True)
                self.same(peer, state.discriminator, d, False)

    def test_two_iterations_agree(self):
        with jax.enable_x64(True):
            state, batch = random_state(), real_images()
            peer, g, d = self.peers(state)
            step, theirs = compiled(make_step(*networks())), peer.start(g, d)
            for number in range(2):
                keys = jax.random.split(jax.random.key(number), 4)
                state, metrics = step(state, batch, keys)
                arguments = self.latents(keys, 2), self.images(batch)
                _, loss = peer.iteration(theirs, *arguments, shared=True)
                ours = metrics["feature_matching"] + 0.05 * metrics["hinge"]
                np.testing.assert_allclose(ours, loss, rtol=1e-9)
            self.same(peer, state.generator, g, True)
            self.same(peer, state.discriminator, d, False)

    def test_sharing_the_pass_differs_from_the_authors_by_little(self):
        """Once u has converged, as it has after a few iterations, σ is the same in both passes."""
        with jax.enable_x64(True):
            state, batch = random_state(), real_images()
            losses = []
            for shared in (True, False):
                peer, g, d = self.peers(state)
                keys = jax.random.split(jax.random.key(0), 4)
                latents, images = self.latents(keys, 2), self.images(batch)
                for layer in (*g.modules(), *d.modules()):
                    if hasattr(layer, "u"):
                        layer.u[0] = peer.torch.linalg.svd(layer.weight.detach().flatten(1))[0][:, 0]
                losses.append(peer.iteration(peer.start(g, d), latents, images, shared)[1])
            np.testing.assert_allclose(*losses, rtol=1e-6)


def test_each_step_moves_one_network():
    generator, discriminator = networks()
    state, batch = random_state(), real_images()
    keys = jax.random.split(jax.random.key(1), 4)
    after = {}
    for loss in (gan.Loss(0.0, 0.0), gan.Loss()):
        after[loss], _ = compiled(make_step(generator, discriminator, loss=loss))(state, batch, keys)
    still, moved = after.values()
    # The discriminator's steps alone change all of its parameters, and none of the generator's.
    chex.assert_trees_all_equal(still.generator["params"], state.generator["params"])
    assert changed(still.discriminator["params"], state.discriminator["params"])
    # The generator's step then changes all of its parameters, and leaves the discriminator's alone.
    chex.assert_trees_all_equal(moved.discriminator["params"], still.discriminator["params"])
    assert changed(moved.generator["params"], state.generator["params"])
    assert moved.step == 1


def changed(tree, before):
    return all(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True))


def test_one_two_and_four_devices_agree():
    with jax.enable_x64(True):
        state, batch = random_state(), real_images()
        keys = jax.random.split(jax.random.key(1), 4)
        alone, metrics = compiled(make_step(*networks()))(state, batch, keys)
        step = make_step(*networks(axis_name=parallel.AXIS), mean=parallel.mean)

        def mine(state, batch, keys):
            share = partial(jax.tree.map, lambda rows: jax.vmap(parallel.mine)(rows))
            return step(state, share(batch), parallel.mine(keys))

        for count in (2, 4):
            on = parallel.devices(count, 4)
            program = parallel.pmap(mine, on, in_axes=(0, None, None))
            together = parallel.first(program(parallel.replicate(state, on), batch, keys))
            chex.assert_trees_all_close(together, (alone, metrics), rtol=1e-9, atol=1e-12)
        assert changed(alone.generator["params"], state.generator["params"])


def test_the_average_has_its_closed_form():
    settings = gan.Average(decay=0.9, start=4)
    values = np.random.default_rng(0).normal(size=(9, 3))
    ema = {"w": jnp.full(3, np.nan)}
    for iteration, value in enumerate(values, 1):
        ema = gan.average(ema, {"w": jnp.asarray(value, jnp.float32)}, jnp.int32(iteration), settings)
        if iteration < 4:
            np.testing.assert_array_equal(ema["w"], value.astype(np.float32))
    powers = 0.9 ** np.arange(5, -1, -1)  # of iterations 4 to 9, after the copy at iteration 3
    expected = 0.9**6 * values[2] + 0.1 * powers @ values[3:]
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)


def test_latents_depend_on_their_key_and_draw_only():
    keys = jax.random.split(jax.random.key(0), 400)
    z, label = gan.draw_latents(keys, 1, CLASSES, LATENT)
    some = gan.draw_latents(keys[100:103], 1, CLASSES, LATENT)
    chex.assert_trees_all_equal(some, (z[100:103], label[100:103]))
    assert abs(z.mean()) < 0.08 and abs(z.std() - 1) < 0.08
    assert np.bincount(label).min() > 100
    assert np.any(gan.draw_latents(keys, 2, CLASSES, LATENT)[0] != z)


# ---- the task


def small(**changes):
    config = squares32.get_config("gan,smoke")
    config.data.limit, config.train.batch_size, config.devices = 24, 4, 1
    config.update_from_flattened_dict(
        {f"gan.{key}": value for key, value in {"width": 4, "d_steps": 2, "iterations": 6, "sample_every": 3}.items()}
    )
    config.gan.check_images, config.gan.ema_start = 4, 3
    config.train.log_every, config.train.checkpoint_minutes = 3, 60.0
    config.update_from_flattened_dict(changes)
    return config


def start(path, config):
    workdir = Workdir(path, config.to_dict())
    try:
        return task.run(config, workdir)
    finally:
        workdir.close()


@pytest.fixture
def compiled_once(tmp_path):
    """Let the runs of a test share their compiled programs."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    compilation_cache.reset_cache()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, compiled_once):
    config = small()
    whole = start(tmp_path / "whole", config)
    save = Workdir.save

    def save_then_die(self, step, tree, **options):
        save(self, step, tree, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "save", save_then_die)
        with pytest.raises(Killed):
            start(tmp_path / "killed", config)
    resumed = start(tmp_path / "killed", config)
    ends = [weights.read(tmp_path / name / "generator.safetensors") for name in ("whole", "killed")]
    chex.assert_trees_all_equal(*(tree for tree, _ in ends))
    del whole["seconds"], resumed["seconds"]
    assert whole == resumed
    for name in ("samples.png", "samples/000003.png", "samples/000006.png"):
        files = [(tmp_path / run / name).read_bytes() for run in ("whole", "killed")]
        assert files[0] == files[1]
    # What the projection reads.
    generator, variables, described = artifacts.load_gan(tmp_path / "whole", ema=True)
    assert described["ema"] and described["image_size"] == 32
    assert described["digest"] == weights.digest(variables) != artifacts.load_gan(tmp_path / "whole")[2]["digest"]
    image, _ = generator.apply(variables, jnp.zeros((2, 128)), jnp.array([0, 1]))
    chex.assert_shape(image, (2, 32, 32, 1))


def test_mnist_is_padded_with_black_and_cropped_back():
    image = np.random.default_rng(0).integers(1, 256, (5, 28, 28, 1)).astype(np.uint8)
    split = data.Split(image, np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32))
    dataset = data.Dataset("mnist", 10, (28, 28, 1), {"train": split, "validation": split})
    config = mnist.get_config("gan")
    padded = pipeline.to_float(jnp.asarray(task.training_images(config, dataset).image))
    assert padded.shape == (10, 32, 32, 1)
    np.testing.assert_array_equal(biggan.crop(padded, 28)[:5], pipeline.to_float(jnp.asarray(image)))
    assert np.all(padded.at[:, 2:-2, 2:-2].set(-1) == -1)
    config.gan.use_validation = False
    assert len(task.training_images(config, dataset).label) == 5
    with pytest.raises(RunError, match="makes images of 32"):
        task.training_images(config, dataset._replace(image_shape=(224, 224, 1)))


def test_the_check_detects_collapse_and_wrong_classes():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 500)
    image = (label * 2 - 1)[:, None, None, None] * 0.3 + rng.normal(size=(1000, 4, 4, 1)) * 0.2
    np.testing.assert_allclose(task.spread(image, label, 2), 0.2, rtol=0.05)
    assert task.spread(np.ones_like(image), label, 2) == [0, 0]
    means = task.class_means(image, label, 2)
    assert task.nearest_mean_accuracy(image, label, means) == 1
    assert task.nearest_mean_accuracy(image, 1 - label, means) == 0


def test_a_trained_classifier_judges_the_samples(tmp_path):
    dataset = data.load("squares32", limit=4)
    config = squares32.get_config("baseline")
    classifier = create_classifier(config, dataset)
    variables = classifier.init(jax.random.key(0))
    file = tmp_path / "classifier.safetensors"
    weights.write(file, variables, config=config.to_dict())
    image = jnp.asarray(dataset.splits["test"].image)
    expected, _ = classifier.apply(variables, image, train=False)
    variables, config, _ = artifacts.load_classifier(tmp_path, "squares32", "config.gan.classifier")
    judge = create_classifier(config, dataset)
    np.testing.assert_allclose(judge.apply(variables, image)[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RunError, match="was trained on squares32, not on mnist: give a classifier of this data set"):
        artifacts.load_classifier(tmp_path, "mnist", "config.gan.classifier")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gan.iterations": 7}, "not a multiple of config.gan.sample_every=3"),
        ({"gan.classifier": "nowhere"}, "no such directory"),
        ({"precision.training": "float16"}, "must be one of float32, tf32, bfloat16"),
        ({"devices": 3}, "not a multiple of config.devices=3"),
    ],
)
def test_wrong_settings_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        config_checks.check(small(**changes))


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(RunError, match="an iteration needs 32 images, there are 24"):
        start(tmp_path, small(**{"train.batch_size": 16}))
