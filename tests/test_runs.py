"""Whole runs of the task `classifier`: resuming, devices, damaged files, errors. A small Spheres run takes seconds."""

import importlib
import json
import shutil
from contextlib import suppress

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from configs import spheres
from gradalign_jax import data, models, parallel, records, training
from gradalign_jax.attacks import ball, pgd
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.experiment import batches
from gradalign_jax.experiment.subject import Stream, create_classifier
from gradalign_jax.models import resnet
from gradalign_jax.storage.atomic import write_atomically
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import classifier
from gradalign_jax.types import Batch, Classifier, Estimate


def small(method, **changes):
    config = spheres.get_config(f"{method},smoke")
    config.train.epochs, config.train.steps_per_epoch, config.train.log_every = 3, 12, 5
    config.attack.steps, config.devices = 3, 1
    config.model.hidden = (32,)
    config.validate.epsilons = config.evaluate.linf_epsilons = config.evaluate.l2_epsilons = (0.01, 0.4)
    config.train.checkpoint_minutes = 60.0
    config.update_from_flattened_dict(changes)
    return config


def start(path, config):
    workdir = Workdir(path, config.to_dict())
    try:
        return classifier.run(config, workdir)
    finally:
        workdir.close()


def last_checkpoint(path, config):
    """Return every array of the newest checkpoint."""
    workdir = Workdir(path, config.to_dict())
    run = classifier.ClassifierRun(config, workdir)
    state = run.fresh_state()
    best = classifier.Best(state.variables, np.int32(-1), np.float64(-1))
    state, best = workdir.restore((state, best))
    workdir.close()
    return state, best


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("method", training.METHODS)
def test_a_killed_run_ends_in_the_same_bits(method, tmp_path, monkeypatch):
    config = small(method)
    whole = start(tmp_path / "whole", config)
    save, saves = Workdir.save, []

    def save_then_die(self, step, tree, **options):
        save(self, step, tree, **options)
        saves.append(step)
        if len(saves) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "save", save_then_die)
        with pytest.raises(Killed):
            start(tmp_path / "killed", config)
    assert saves == [12, 24]
    with monkeypatch.context() as patch:  # killed again in the middle of the test
        patch.setattr(Workdir, "point", lambda self, **_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            start(tmp_path / "killed", config)
    resumed = start(tmp_path / "killed", config)
    chex.assert_trees_all_equal(
        last_checkpoint(tmp_path / "whole", config), last_checkpoint(tmp_path / "killed", config)
    )
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    del whole["seconds"], resumed["seconds"]
    assert whole == resumed


def test_a_validation_that_is_longer_than_the_time_between_kills_makes_progress(tmp_path, monkeypatch):
    """Every start lives for four points: less than one validation."""
    config = small("baseline", **{"train.epochs": 2, "evaluate.block": 20})
    whole = start(tmp_path / "whole", config)
    point, starts, left = Workdir.point, 0, 0

    def point_then_die(self, **values):
        nonlocal left
        point(self, **values)
        left -= 1
        if not left:
            raise Killed

    monkeypatch.setattr(Workdir, "point", point_then_die)
    resumed = None
    while resumed is None:
        starts, left = starts + 1, 4
        assert starts < 40
        with suppress(Killed):
            resumed = start(tmp_path / "killed", config)
    assert starts > 4
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    del whole["seconds"], resumed["seconds"]
    assert whole == resumed


@pytest.mark.parametrize("method", training.METHODS)
def test_devices_change_a_run_only_by_rounding(method, tmp_path):
    states = {}
    for devices in (1, 2, 4):
        config = small(method, **{"devices": devices, "train.batch_size": 48})
        start(tmp_path / str(devices), config)
        states[devices] = last_checkpoint(tmp_path / str(devices), config)[0]
    chex.assert_trees_all_close(states[1].variables, states[2].variables, atol=2e-5)
    chex.assert_trees_all_close(states[1].variables, states[4].variables, atol=2e-5)
    moved = optax.tree.norm(
        jax.tree.map(lambda a, b: a - b, states[1].variables["params"], fresh(config).variables["params"])
    )
    assert moved > 1e-2  # it did train


def test_a_run_moves_between_numbers_of_devices(tmp_path, monkeypatch):
    """Saved on 4 devices, resumed on 1, on 2 and on 4 again: the run of one device up to rounding."""
    settings = {"train.batch_size": 48, "train.epochs": 4}
    config = small("pgd", **settings)
    start(tmp_path / "one", config)
    save = Workdir.save

    def save_then_die(self, step, tree, **options):
        save(self, step, tree, **options)
        raise Killed

    for devices in (4, 1, 2, 4):
        with monkeypatch.context() as patch, suppress(Killed):
            if devices != 4 or not (tmp_path / "moved").exists():
                patch.setattr(Workdir, "save", save_then_die)
            start(tmp_path / "moved", small("pgd", devices=devices, **settings))
    assert (tmp_path / "moved" / "result.json").exists()
    states = [last_checkpoint(tmp_path / name, config)[0] for name in ("one", "moved")]
    assert states[0].step == states[1].step == 48
    chex.assert_trees_all_close(states[0].variables, states[1].variables, atol=2e-5)


def test_memory_grows_with_the_data_only_by_the_images():
    """A compiled chunk needs, besides its arguments, only the order of an epoch: some bytes per image."""
    model = models.create("mlp", hidden=(16,), input_size=32 * 32)
    flat = Classifier(model.init, lambda v, image, train=False: model.apply(v, image.reshape(len(image), -1), train))
    optimizer = optax.sgd(0.1)
    step = training.make_step(flat, optimizer, "pgd", attack=pgd.make(steps=2))
    state = training.create_state(flat, optimizer, jax.random.key(0))
    config = small("pgd", **{"train.batch_size": 10})
    needed = {}
    for size in (1000, 4000):
        split = data.Split(
            np.zeros((size, 32, 32, 1), np.uint8), np.zeros(size, np.int32), np.arange(size, dtype=np.int32)
        )
        dataset = data.Dataset("drawn", 2, (32, 32, 1), {"train": split})
        source = batches.source(config, dataset, size // 10, jax.random.key(1))
        chunk = jax.jit(training.make_chunk(step, source, 4, 10))
        inputs = training.StepInputs(epsilon=np.float32(0.1), step_size=np.float32(0.05))
        memory = chunk.lower(state, split, jax.random.key(2), inputs).compile().memory_analysis()
        needed[size] = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert needed[4000] - needed[1000] < 64 * 3000  # an image as float32 has 4096 bytes


def fresh(config):
    optimizer = classifier.create_optimizer(config)
    return training.create_state(
        create_classifier(config, data.load("spheres")),
        optimizer,
        jax.random.fold_in(jax.random.key(0), 0),
    )


def test_evaluation_does_not_depend_on_devices():
    model = models.create("mlp", hidden=(64,))
    spheres_set = data.load("spheres")
    split = data.Split(*jax.device_get(spheres_set.sample(jax.random.key(1), 103)))
    variables = model.init(jax.random.key(0))
    measured = []
    for devices in (1, 2, 4):
        on = parallel.devices(devices, 4)
        evaluation = Evaluation(
            model,
            split,
            on=on,
            block=10,
            key=jax.random.key(2),
            attacks={"pgd_linf": pgd.make("linf", steps=5), "pgd_l2": pgd.make("l2", steps=5)},
            delta_x=Estimate(Partial(spheres_set.delta_x), {}),
        )
        copies = parallel.replicate(variables, on)
        errors = [evaluation.errors(copies, a, e, e / 3) for a in ("pgd_linf", "pgd_l2") for e in (0, 1e-3, 0.2)]
        assert all(len(wrong) == 103 for wrong in errors)
        measured.append((errors, evaluation.alignments(copies)))
    chex.assert_trees_all_equal(*measured)
    assert 0 < np.mean(measured[0][0][1]) < 1


def test_evaluation_equals_one_call_of_the_model():
    model = models.create("mlp", hidden=(16,))
    split = data.Split(*jax.device_get(data.load("spheres").sample(jax.random.key(1), 23)))
    variables = model.init(jax.random.key(0))
    on = parallel.devices(2, 4)
    evaluation = Evaluation(model, split, on=on, block=5, key=jax.random.key(2), attacks={}, delta_x=None)
    expected = np.argmax(model.apply(variables, split.image)[0], -1) != split.label
    np.testing.assert_array_equal(evaluation.errors(parallel.replicate(variables, on), "", 0.0, 0.1), expected)


def test_random_starts_are_independent_of_the_test_set(tmp_path):
    """A sampled test set and the attacks on it must not share randomness: starts would lie along x."""
    config = small("baseline")
    workdir = Workdir(tmp_path, config.to_dict())
    run = classifier.ClassifierRun(config, workdir)
    workdir.close()
    for name, stream in (("validation", Stream.VALIDATE), ("test", Stream.TEST)):
        image = run.subject.split(name).image
        keys = jax.vmap(jax.random.fold_in, (None, 0))(run.stream(stream), jnp.arange(len(image)))
        noise = jax.vmap(ball.BALLS["l2"].random_start)(keys, jnp.asarray(image))
        cosine = np.sum(image * noise, 1) / np.linalg.norm(image, axis=1) / np.linalg.norm(noise, axis=1)
        assert np.abs(cosine).max() < 0.25  # 500 dimensions: the standard deviation is 0.045


def test_seconds_add_up_over_starts(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("gradalign_jax.storage.workdir.time.monotonic", lambda: clock[0])

    def spend(seconds, leave):
        workdir = Workdir(tmp_path, {})
        workdir.restore({"a": np.zeros(2)})
        clock[0] += seconds
        leave(workdir)
        clock[0] += 7  # lost: nothing was saved since
        workdir.close()
        return round(workdir.seconds())

    assert spend(50, lambda workdir: workdir.save(1, {"a": np.ones(2)})) == 57
    assert spend(20, lambda workdir: workdir.point(measure="a", value=1)) == 77
    assert spend(3, lambda workdir: None) == 80


def test_damaged_lines_are_skipped_and_a_damaged_config_is_refused(tmp_path):
    config = small("baseline")
    workdir = Workdir(tmp_path, config.to_dict())
    workdir.point(measure="a", epsilon=0.1, value=1)
    with open(tmp_path / "evaluation.jsonl", "a") as file:
        file.write('{"measure": "a", "eps')
    workdir.point(measure="a", epsilon=0.2, value=2)
    workdir.point(measure="a", epsilon=0.3, value=[3, 4])
    file = tmp_path / "evaluation.jsonl"
    file.write_text(file.read_text().replace("[3, 4]", "[3, 5]"))  # damaged: measured again
    assert [point["value"] for point in workdir.points()] == [1, 2]
    workdir.close()
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(RunError, match=r"config.json is damaged"):
        Workdir(tmp_path, config.to_dict())


def test_a_refused_directory_is_released(tmp_path):
    Workdir(tmp_path, {"a": 1}).close()
    with pytest.raises(RunError, match="another config"):
        Workdir(tmp_path, {"a": 2})
    Workdir(tmp_path, {"a": 1}).close()


def test_a_full_disk_under_tensorboard_is_reported(tmp_path):
    """TensorBoard's writer is a thread that dies silently, and then blocks its callers."""
    workdir = Workdir(tmp_path, {})
    workdir.open_metrics(0)
    queue = workdir._board.file_writer.event_writer
    queue._worker.stop()
    queue._worker.join()
    with pytest.raises(RunError, match=r"cannot write .*tensorboard: free space"):
        workdir.metrics(1, loss=1.0)
    workdir.close()


def test_batch_statistics_are_those_of_the_whole_batch():
    """Batch norm over two devices: outputs, statistics, and the gradient of a gradient penalty."""
    image = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * 2 + 1
    with jax.enable_x64(True):
        image = image.astype(float)

        def loss(norm, x, weight):
            def score(v):
                return norm.apply({"params": weight, "batch_stats": stats}, v, True, mutable=["batch_stats"])[0] ** 3

            gradient = jax.grad(lambda v: score(v).sum())(x)
            return (score(x) + jnp.sin(gradient)).mean()

        whole, spread = resnet.BatchNorm(), resnet.BatchNorm(axis_name=parallel.AXIS)
        weight = {"scale": jnp.array([1.5, 0.5]), "bias": jnp.array([0.3, -0.2])}
        stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
        expected = jax.grad(lambda w: loss(whole, image, w))(weight)
        on = parallel.devices(2, 4)

        def on_device(x, w):
            return parallel.mean(jax.grad(lambda w: loss(spread, x, w))(w))

        halves = parallel.split(image.reshape(2, 4, 3, 3, 2), on)
        got = parallel.first(parallel.pmap(on_device, on, in_axes=(0, None))(halves, weight))
    chex.assert_trees_all_close(got, expected, rtol=1e-9)


def test_damaged_checkpoints_are_skipped_then_refused(tmp_path, caplog):
    config = small("baseline")
    start(tmp_path, config)
    (tmp_path / "result.json").unlink()
    newest, older = sorted((tmp_path / "checkpoints").glob("*.json"), key=lambda f: -int(f.stem))
    damaged = max((tmp_path / "checkpoints" / newest.stem).rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    before = last_checkpoint(tmp_path, config)[0]
    assert int(before.step) == int(older.stem)
    shutil.rmtree(tmp_path / "checkpoints" / older.stem)
    with pytest.raises(RunError, match=r"every checkpoint .* is damaged"):
        last_checkpoint(tmp_path, config)


def test_a_directory_of_another_config_or_writer_is_refused(tmp_path):
    config = small("baseline")
    held = Workdir(tmp_path, config.to_dict())
    with pytest.raises(RunError, match="another process"):
        Workdir(tmp_path, config.to_dict())
    held.close()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(RunError, match=r"optimizer.learning_rate \(0.0001 -> 0.5\)"):
        Workdir(tmp_path, config.to_dict())
    config.optimizer.learning_rate, config.devices = 1e-4, 2
    Workdir(tmp_path, config.to_dict()).close()  # the number of devices may change


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("steps", [12, 1])
def test_divergence_stops_before_it_is_saved(steps, tmp_path):
    rate = {12: 1e30, 1: 1e39}[steps]  # one step is enough to overflow
    config = small("baseline", **{"optimizer.name": "sgd", "optimizer.learning_rate": rate})
    config.train.steps_per_epoch = steps
    left = []
    for _ in range(2):  # the same command repeats it
        with pytest.raises(RunError, match="not finite from step"):
            start(tmp_path, config)
        left.append(records.read(tmp_path / "diverged.json", "remedy"))
    assert left[0]["step"] <= left[0]["last_step"] <= steps
    assert left[0]["checkpoint"] == 0
    assert repr(left[0]) == repr(left[1])  # NaN is no NaN's equal
    assert not list((tmp_path / "checkpoints").glob("*.json"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"devices": 99}, "99"),
        ({"train.steps_per_epoch": 0}, "this data set is sampled"),
        ({"data.name": "sphere"}, "did you mean 'spheres'"),
    ],
)
def test_errors_name_the_limits_of_the_machine_and_the_data_set(changes, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        start(tmp_path, small("baseline", **changes))


def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("os"), "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(tmp_path / "result.json", "{}")
    assert not list(tmp_path.iterdir())


def test_only_align_computes_input_gradients_of_clean_images():
    """Backward passes of a step, counted as they are traced: baseline 1, pgd 1 + 1 in its loop."""
    passes = []

    @jax.custom_vjp
    def features(x):
        return x

    features.defvjp(lambda x: (x, None), lambda _, g: (passes.append(1), (g,))[1])

    def apply(variables, image, train=False):
        return features(image @ variables["params"]), {}

    model = Classifier(lambda key: {"params": jnp.ones((7, 5)), "batch_stats": {}}, apply)
    optimizer = optax.sgd(0.1)
    batch = Batch(jnp.ones((3, 7)), jnp.zeros(3, int), jnp.arange(3))
    inputs = training.StepInputs(epsilon=0.1, step_size=0.1)
    for method, expected in (("baseline", 1), ("pgd", 2)):
        step = training.make_step(model, optimizer, method, attack=pgd.make())
        passes.clear()
        jax.jit(step)(training.create_state(model, optimizer, None), batch, jax.random.key(0), inputs)
        assert len(passes) == expected
