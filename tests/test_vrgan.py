"""VR-GAN: its generators, its losses, its two updates, and whole runs."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import mnist35, spheres, squares32
from gradalign_jax import data, models, parallel, training
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, config_checks, estimates
from gradalign_jax.models import mlp, residual_mlp, unet
from gradalign_jax.storage import weights
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import vrgan as task
from gradalign_jax.training import vrgan
from gradalign_jax.types import Batch

OPTIMIZER = training.adam(1e-3, 0.0, 0.9)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("unet", {"downsamplings": 2}, 2_036_355),
        ("unet", {"downsamplings": 4}, 34_503_171),
        ("residual_mlp", {}, 2_008_500),
    ],
)
def test_parameter_counts(name, options, expected):
    variables = jax.eval_shape(models.create(name, **options).init, jax.random.key(0))
    assert count(variables["params"]) == expected


def test_label_maps():
    maps = unet.label_maps(jnp.array([1, 0]), jnp.array([0, 1]), (2, 3))
    chex.assert_shape(maps, (2, 2, 3, 3))
    np.testing.assert_allclose(maps[0, 1, 2], [1.5, -3.5, -5], rtol=1e-6)
    np.testing.assert_allclose(maps[1, 0, 0], [-3.5, 1.5, 5], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_upsampling_interpolates_between_corners(size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    got = np.asarray(unet.upsample(jnp.asarray(x)))
    place = np.linspace(0, size - 1, 2 * size)
    for b, c in [(0, 0), (1, 2)]:
        rows = np.stack([np.interp(place, np.arange(size), x[b, :, j, c]) for j in range(size)], 1)
        expected = np.stack([np.interp(place, np.arange(size), row) for row in rows])
        np.testing.assert_allclose(got[b, ..., c], expected, atol=1e-6)


def test_first_residuals_are_small_and_pooling_needs_whole_windows():
    generator = unet.create(width=8, downsamplings=2)
    image = jax.random.uniform(jax.random.key(1), (6, 16, 16, 1), minval=-1, maxval=1)
    label = jnp.arange(6) % 2
    residual, _ = generator.apply(generator.init(jax.random.key(0)), image, 1 - label, label, train=True)
    chex.assert_equal_shape([residual, image])
    # The last batch norm's weight is drawn around 0.1, and its input is normalized to standard deviation 1.
    assert 0.05 < float(residual.std()) < 0.15
    with pytest.raises(ValueError, match="multiples of 4"):
        generator.apply(generator.init(jax.random.key(0)), image[:, :14], label, label)


def small_pair():
    generator = residual_mlp.create(hidden=(12,), input_size=9)
    critic = mlp.create(hidden=(10,), input_size=9)
    image = jax.random.normal(jax.random.key(3), (8, 9))
    batch = Batch(image, jnp.arange(8) % 2, jnp.arange(8))
    return generator, critic, batch


def test_gradients_equal_autodiff_of_the_papers_losses():
    """The gradients of both updates equal autodiff of the two objectives as the paper writes them."""
    generator, critic, batch = small_pair()
    state = vrgan.create_state(generator, critic, OPTIMIZER, jax.random.key(0))
    chosen = vrgan.Weights(real=0.7, generated=0.2, fool=0.4, small=0.9)

    def binary_loss(logits, label):
        score = logits[:, 1] - logits[:, 0]
        return jnp.mean(jax.nn.softplus(jnp.where(label == 1, -score, score)))

    def objectives(generator_params, critic_params):
        variables = {**state.generator, "params": generator_params}
        residual = generator.apply(variables, batch.image, 1 - batch.label, batch.label, train=True)[0]
        judge = lambda x: critic.apply({**state.critic, "params": critic_params}, x)[0]  # noqa: E731
        moved = judge(batch.image + residual)
        real, generated = binary_loss(judge(batch.image), batch.label), binary_loss(moved, batch.label)
        small = jnp.mean(jnp.sqrt(jnp.sum(residual**2, -1))) / np.sqrt(9)
        fool = binary_loss(moved, 1 - batch.label)
        return chosen.real * real + chosen.generated * generated, chosen.fool * fool + chosen.small * small

    at = state.generator["params"], state.critic["params"]
    passed = vrgan.forward(generator, critic, state.generator, state.critic, batch)
    of_critic, _ = vrgan.critic_gradient(critic, state.critic, batch, passed, chosen)
    of_generator, _ = vrgan.generator_gradient(batch, passed, chosen)
    chex.assert_trees_all_close(of_critic, jax.grad(lambda d: objectives(at[0], d)[0])(at[1]), rtol=2e-4, atol=1e-6)
    chex.assert_trees_all_close(of_generator, jax.grad(lambda g: objectives(g, at[1])[1])(at[0]), rtol=2e-4, atol=1e-6)
    _, metrics = vrgan.make_step(generator, critic, OPTIMIZER, chosen)(state, batch)
    np.testing.assert_allclose(metrics["loss"], sum(objectives(*at)), rtol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "still"),
    [(vrgan.Weights(fool=0.0, small=0.0), "generator"), (vrgan.Weights(real=0.0, generated=0.0), "critic")],
)
def test_each_update_leaves_the_other_network_alone(chosen, still):
    generator, critic, batch = small_pair()
    before = vrgan.create_state(generator, critic, OPTIMIZER, jax.random.key(0))
    after, _ = vrgan.make_step(generator, critic, OPTIMIZER, chosen)(before, batch)
    moving = {"generator": "critic", "critic": "generator"}[still]
    chex.assert_trees_all_equal(getattr(before, still)["params"], getattr(after, still)["params"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), getattr(before, moving), getattr(after, moving))
    assert any(jax.tree.leaves(moved["params"]))


def test_a_zero_residual_has_a_zero_gradient():
    value, gradient = jax.value_and_grad(lambda r: vrgan.relative_norm(r).sum())(jnp.zeros((2, 3, 3, 1)))
    assert value < 1e-12
    np.testing.assert_array_equal(gradient, 0)


def tiny(module, **changes):
    config = module.get_config("vrgan,smoke")
    config.train.epochs, config.train.steps_per_epoch, config.train.log_every = 2, 4, 2
    if "hidden" not in config.generator and config.generator.name == "residual_mlp":
        config.generator.hidden, config.model.hidden = (16,), (16,)
    for key, value in changes.items():
        config[key] = value
    config_checks.check(config)
    return config


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    config = tiny(spheres)
    whole = Workdir(tmp_path / "whole", config.to_dict())
    expected = task.run(config, whole)
    killed = Workdir(tmp_path / "killed", config.to_dict())
    real_save, saves = Workdir.save, []

    def save(self, step, tree, **options):
        real_save(self, step, tree, **options)
        saves.append(step)
        if len(saves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Workdir, "save", save)
    with pytest.raises(KeyboardInterrupt):
        task.run(config, killed)
    assert saves == [4]
    got = task.run(config, killed)
    trees = [weights.read(w.path / artifacts.GENERATOR)[0] for w in (whole, killed)]
    chex.assert_trees_all_equal(*trees)
    assert got["similarity"] == expected["similarity"]
    assert got["best"] == expected["best"]
    assert json.loads((tmp_path / "killed" / "result.json").read_text())["task"] == "vrgan"
    assert (tmp_path / "killed" / "residuals.png").stat().st_size > 1000
    assert task.table(got).count("\n") >= 4


def test_two_devices_equal_one():
    """Batch statistics of the generator are those of the whole batch, so only rounding differs."""
    batch = jax.tree.map(np.asarray, data.load("spheres").sample(jax.random.key(0), 16))
    states = []
    for devices in (1, 2):
        on = parallel.devices(devices, 16)
        generator = residual_mlp.create(hidden=(16,), axis_name=parallel.AXIS)
        critic = mlp.create(hidden=(16,))
        state = vrgan.create_state(generator, critic, optax.sgd(0.1), jax.random.key(1))
        step = vrgan.make_step(generator, critic, optax.sgd(0.1), mean=parallel.mean)
        program = parallel.pmap(lambda state, batch, step=step: step(state, jax.tree.map(parallel.mine, batch)), on)
        state = parallel.replicate(state, on)
        for _ in range(3):
            state, metrics = program(state, parallel.replicate(batch, on))
        states.append((parallel.first(state), parallel.first(metrics)))
    chex.assert_trees_all_close(*states, atol=2e-5, rtol=1e-4)


def test_align_uses_the_configured_generator(tmp_path):
    config = tiny(squares32)
    config.data.limit = 48
    config.evaluate.images = 16
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 1, 2, 4
    directory = tmp_path / "vrgan"
    workdir = Workdir(directory, config.to_dict())
    task.run(config, workdir)
    dataset = data.load("squares32", limit=8)
    chosen = squares32.get_config("align,smoke")
    chosen.delta_x.generator = str(directory)
    config_checks.check(chosen)
    estimate = estimates.load_delta_x(chosen.delta_x, dataset, "train")
    image, label = jnp.asarray(dataset.splits["test"].image), jnp.asarray(dataset.splits["test"].label)
    got = estimate.delta_x(image, label, 1 - label, jnp.arange(8))
    variables, _ = weights.read(directory / artifacts.GENERATOR)
    expected = artifacts.create_residual_generator(config).apply(variables, image, 1 - label, label)[0]
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(RunError, match="a generator for squares32, not mnist35"):
        estimates.load_residual(directory, dataset._replace(name="mnist35"))
    weights.write(tmp_path / artifacts.GENERATOR, {"raw": variables, "ema": variables}, config={"task": "gan"})
    with pytest.raises(RunError, match="holds the generator of a gan run"):
        estimates.load_residual(tmp_path, dataset)
    with pytest.raises(RunError, match="holds no conditional GAN"):
        artifacts.load_gan(directory)
    (tmp_path / artifacts.GENERATOR).unlink()
    with pytest.raises(RunError, match="is missing"):
        estimates.load_residual(tmp_path, dataset)


def test_more_than_two_classes_are_refused(tmp_path, monkeypatch):
    config = tiny(squares32)
    ten = data.load("squares32", limit=8)._replace(num_classes=10)
    monkeypatch.setattr(task.batches, "load", lambda config: ten)
    with pytest.raises(RunError, match="squares32 has 10: estimate its Δx with the tasks gan and project"):
        task.run(config, Workdir(tmp_path, config.to_dict()))


def test_the_generator_of_training_is_refused_for_measuring(tmp_path):
    config = mnist35.get_config("align")
    with pytest.raises(ValueError, match=r"config\.delta_x\.generator=DIR"):
        config_checks.check(config)
    config.delta_x.generator = str(tmp_path)
    config_checks.check(config)
    config.evaluate.generator = f"{tmp_path}/."
    with pytest.raises(ValueError, match="the generator that training used"):
        config_checks.check(config)
    config.evaluate.same_generator = True
    config_checks.check(config)
    config.evaluate.generator = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such directory"):
        config_checks.check(config)


# ---- against PyTorch


@pytest.mark.parametrize("name", ["unet", "residual_mlp"])
def test_generator_and_step_agree_with_pytorch(name):
    torch = pytest.importorskip("torch")
    from launch.bench.torch_peer import models as peers
    from launch.bench.torch_peer import vrgan as peer

    image_shape = (4, 8, 8, 1) if name == "unet" else (4, 9)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        if name == "unet":
            generator = unet.create(width=4, downsamplings=2)
            critic = mlp.create(hidden=(6, 5), input_size=64)
            theirs, their_critic = peer.UNet(1, 4, 2), peers.MLP(64, 6)
            their_critic.linear[1], their_critic.linear[2] = torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)
            their_critic.norm[1] = peers.FrozenNorm1d(5)
            flat = critic._replace(apply=lambda v, x, train=False: critic.apply(v, x.reshape(len(x), -1), train))
            judge = torch.nn.Sequential(torch.nn.Flatten(), their_critic)
        else:
            generator = residual_mlp.create(hidden=(7, 7), input_size=9)
            flat = critic = mlp.create(hidden=(6, 6), input_size=9)
            theirs, their_critic = peer.ResidualMLP(9, 7), peers.MLP(9, 6)
            judge = their_critic

        def draw(path, leaf):
            positive = path[-1].key in ("scale", "var")
            return jnp.asarray(rng.uniform(0.8, 1.2, leaf.shape) if positive else rng.normal(size=leaf.shape) / 3)

        shapes = jax.eval_shape(generator.init, jax.random.key(0)), jax.eval_shape(critic.init, jax.random.key(0))
        variables, critic_variables = jax.tree_util.tree_map_with_path(draw, shapes)
        image, label = rng.normal(size=image_shape), np.arange(4) % 2
        theirs, judge = theirs.double(), judge.double()
        peers.load_flax(theirs, variables)
        peers.load_flax(their_critic, critic_variables)
        x = torch.from_numpy(image.transpose(0, 3, 1, 2) if name == "unet" else image)
        y = torch.from_numpy(label)

        theirs.eval()
        expected = theirs(x, 1 - y, y).detach().numpy()
        got, _ = generator.apply(variables, jnp.asarray(image), 1 - jnp.asarray(label), jnp.asarray(label))
        np.testing.assert_allclose(np.moveaxis(expected, 1, -1) if name == "unet" else expected, got, atol=1e-6)

        optimizer = training.adam(1e-4, 0.0, 0.9)
        state = vrgan.VRGANState(
            variables,
            critic_variables,
            optimizer.init(variables["params"]),
            optimizer.init(critic_variables["params"]),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
        )
        step = jax.jit(vrgan.make_step(generator, flat, optimizer))
        their_step = peer.make_step(theirs.train(), judge.train(), "lean", fused=False)
        for _ in range(2):
            state, metrics = step(state, Batch(jnp.asarray(image), jnp.asarray(label), jnp.arange(4)))
            their_loss = their_step(x, y)
        np.testing.assert_allclose(metrics["loss"], their_loss.numpy(), rtol=1e-6)
        for ours, module in ((state.generator, theirs), (state.critic, their_critic)):
            named = dict(module.state_dict())
            named = {key.replace(".conv.", "."): value.numpy() for key, value in named.items()}
            flat_ours = {**peers.flax_to_torch(ours["params"]), **peers.flax_to_torch(ours["batch_stats"])}
            for key, value in flat_ours.items():
                np.testing.assert_allclose(value, named[key], rtol=1e-5, atol=2e-7, err_msg=key)
