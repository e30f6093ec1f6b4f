"""Projection on demand: to the closest classes of a classifier alone, filled further later, and read by evaluations."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import mnist
from generators import lively
from gradalign_jax import data
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import batches, closest, config_checks, estimates, subject
from gradalign_jax.experiment.pairs import Pairs, lay_out
from gradalign_jax.storage import shards, weights
from gradalign_jax.storage.shards import Store
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import evaluate, project
from gradalign_jax.types import Classifier

CLASSES, IMAGES, SIDE = 3, 5, 32


def linear(config, dataset):
    """Return a linear classifier, in place of the configured one."""
    del config, dataset

    def apply(variables, image, train=False):
        return image.reshape(len(image), -1) @ variables["params"]["kernel"], {}

    return Classifier(lambda key: None, apply)


def kernel(seed):
    return np.random.default_rng(seed).normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32) / SIDE


def closest_of(seed, images):
    """Return c̃ of each image, by Eq. 5 for a linear classifier."""
    w = kernel(seed).astype(np.float64)
    found = []
    for image, label in zip(images.image, images.label, strict=True):
        x = image.reshape(-1) / 127.5 - 1
        others = [k for k in range(CLASSES) if k != label]
        found.append(
            min(others, key=lambda k, y=label, x=x: x @ (w[:, y] - w[:, k]) / np.linalg.norm(w[:, y] - w[:, k]))
        )
    return np.array(found)


@pytest.fixture(scope="module")
def dataset():
    rng, splits = np.random.default_rng(0), {}
    for start, name in enumerate(("train", "validation", "test")):
        label = np.arange(IMAGES, dtype=np.int32) % CLASSES
        image = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 1)).astype(np.uint8)
        splits[name] = data.Split(image, label, np.arange(IMAGES, dtype=np.int32) + 10 * start)
    return data.Dataset("mnist", CLASSES, (SIDE, SIDE, 1), splits)


@pytest.fixture(autouse=True)
def replaced(monkeypatch, dataset):
    """Use the small data set and the linear classifier."""
    monkeypatch.setattr(batches, "load", lambda config: dataset)
    for module in (closest, subject):
        monkeypatch.setattr(module, "create_classifier", linear)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with a finished gan run and two finished classifiers."""
    folder = tmp_path_factory.mktemp("runs")
    described = {"num_classes": CLASSES, "channels": 1, "width": 8, "latent_dim": 128, "dataset": "mnist"}
    for name in ("gan", "c0", "c1"):
        (folder / name).mkdir()
    tree = lively(CLASSES, 1, width=8)[1]
    weights.write(folder / "gan" / "generator.safetensors", {"raw": tree, "ema": tree}, **described)
    for seed in range(2):
        tree = {"params": {"kernel": kernel(seed)}}
        path = folder / f"c{seed}"
        weights.write(path / "classifier.safetensors", tree, config=mnist.get_config("baseline,smoke").to_dict())
        (path / "result.json").write_text('{"notes": [], "best": {}, "seconds": 1.0}')
    return folder


def settings(runs, **changes):
    config = mnist.get_config("project,smoke")
    config.project.generator = str(runs / "gan")
    config.data.limit, config.devices = 0, 1
    config.project.steps, config.project.block, config.project.splits = (3, 2), 4, ("train", "test")
    config.update_from_flattened_dict(changes)
    config_checks.check(config)
    return config


def nearby(runs, seed=0):
    return settings(runs, **{"project.classes": "closest", "project.classifier": str(runs / f"c{seed}")})


def start(path, config, task=project):
    """Run a task as the entry point does."""
    workdir = Workdir(path, config.to_dict())
    try:
        return workdir.result() or task.run(config, workdir)
    finally:
        workdir.close()


def stored(path):
    found = shards.find(path / "store").read()
    return {(int(i), int(c)): z for i, c, z in zip(found["index"], found["target"], found["z"], strict=True)}


def content(path):
    return {file.name: file.read_bytes() for file in (path / "store").iterdir()}


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory, dataset):
    """Return the directory and result of a run that projected to the closest classes of c0."""
    path = tmp_path_factory.mktemp("near")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "load", lambda config: dataset)
        patch.setattr(closest, "create_classifier", linear)
        return path, start(path, nearby(runs))


def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_only_the_closest_classes_are_projected(finished, dataset):
    path, result = finished
    used = [dataset.splits[name] for name in ("train", "test")]
    expected = {(int(i), int(c)) for part in used for i, c in zip(part.index, closest_of(0, part), strict=True)}
    assert stored(path).keys() == expected
    assert result["pairs"] == 2 * IMAGES
    assert 0 <= result["moved"] <= 1
    assert len(content(path)) == 1 + 3  # 4 images of every shard: 10 images
    with np.load(path / "pictures.npz") as pictures:
        drawn = np.isfinite(pictures["projected"]).all((2, 3, 4))
    assert drawn.sum() == IMAGES  # one class each


def test_a_store_is_filled_further(finished, runs, tmp_path):
    path = copied(finished, tmp_path)
    before = stored(path)
    result = start(path, settings(runs))
    after = stored(path)
    assert result["pairs"] == len(after) == 2 * IMAGES * CLASSES
    assert all(np.array_equal(after[pair], z) for pair, z in before.items())
    at_once = start(tmp_path / "once", settings(runs))
    assert at_once["pairs"] == result["pairs"]
    for pair, z in stored(tmp_path / "once").items():
        np.testing.assert_allclose(after[pair], z, atol=1e-4)
    assert at_once["loss"]["test"]["mean"] == pytest.approx(result["loss"]["test"]["mean"], rel=1e-4)


def test_a_finished_run_computes_only_what_is_new(finished, runs, tmp_path, monkeypatch, dataset):
    path = copied(finished, tmp_path)
    before = start(path, nearby(runs))
    assert before.pop("files").keys() == {"pictures.npz"}
    assert before == json.loads(json.dumps(finished[1]))
    written = []
    write = Store.write
    monkeypatch.setattr(
        Store, "write", lambda self, number, **arrays: written.append(number) or write(self, number, **arrays)
    )
    start(path, nearby(runs, seed=1))
    used = [dataset.splits[name] for name in ("train", "test")]
    first, second = (np.concatenate([closest_of(seed, part) for part in used]) for seed in range(2))
    new = np.flatnonzero(first != second)
    assert 0 < len(new) < len(first)
    assert sorted(written) == sorted({int(i) // 4 for i in new})
    assert len(stored(path)) == len(first) + len(new)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("begun", [False, True], ids=["first", "further"])
def test_a_killed_run_ends_in_the_same_bytes(begun, finished, runs, tmp_path, monkeypatch):
    write = Store.write

    def write_then_die(self, number, **arrays):
        write(self, number, **arrays)
        raise Killed

    config = settings(runs) if begun else nearby(runs)
    path = copied(finished, tmp_path) if begun else tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", write_then_die)
        for _ in range(2):
            with pytest.raises(Killed):
                start(path, config)
    start(path, config)
    expected = finished[0]
    if begun:
        (tmp_path / "whole").mkdir()
        expected = copied(finished, tmp_path / "whole")
        start(expected, config)
    assert content(path) == content(expected)


def test_success_is_counted_by_destination(runs, tmp_path, dataset):
    result = start(tmp_path, settings(runs, **{"project.classifier": str(runs / "c0")}))
    test = dataset.splits["test"]
    generator, variables = lively(CLASSES, 1, width=8)
    pairs = [(pair, z) for pair, z in stored(tmp_path).items() if pair[0] in test.index]
    target = np.array([c for (_, c), _ in pairs])
    image = jax.jit(generator.apply)(variables, np.stack([z for _, z in pairs]), target)[0]
    right = (np.asarray(image).reshape(len(pairs), -1) @ kernel(0)).argmax(1) == target
    other = np.array([test.label[test.index == i][0] for (i, _), _ in pairs]) != target
    for c in range(CLASSES):
        assert result["moved_by_destination"][str(c)] == pytest.approx(right[other & (target == c)].mean())
    assert result["moved"] == pytest.approx(right[other].mean())


# ---- readers


def test_a_store_of_some_classes_is_refused_for_training(finished, dataset):
    section = mnist.get_config("align").delta_x
    section.store = str(finished[0])
    with pytest.raises(
        RunError, match=r"no Δx for 5 pairs of a train image and another class.*config.project.classes=all"
    ):
        estimates.load_delta_x(section, dataset, "train")
    estimate = estimates.load_delta_x(section, dataset, "test", some_classes=True)
    test = dataset.splits["test"]
    image = data.to_float(test.image)
    for target, held in ((closest_of(0, test), True), (3 - closest_of(0, test) - test.label, False)):
        vector = jax.jit(lambda delta_x, *batch: delta_x(*batch))(
            estimate.delta_x, image, test.label, target, test.index
        )
        assert np.isfinite(vector).all((1, 2, 3)).tolist() == [held] * IMAGES


def evaluation(runs, store, seed):
    config = mnist.get_config("evaluate,smoke")
    config.data.limit, config.devices = 0, 1
    config.evaluate.linf_epsilons = config.evaluate.l2_epsilons = (0.1,)
    config.evaluate.square_queries, config.evaluate.images, config.attack.steps = 0, 0, 2
    config.evaluate.store, config.classifier = str(store), str(runs / f"c{seed}")
    config_checks.check(config)
    return config


def test_an_evaluation_needs_its_own_closest_classes(finished, runs, tmp_path, monkeypatch):
    result = start(tmp_path / "own", evaluation(runs, finished[0], 0), evaluate)
    assert np.isfinite(result["alpha_delta_x"])
    path, config = copied(finished, tmp_path), evaluation(runs, tmp_path / "run", 1)
    with monkeypatch.context() as patch:
        patch.setattr("gradalign_jax.evaluation.programs.Evaluation.attacked", None)  # refused before the first attack
        with pytest.raises(RunError, match=rf"no Δx to the closest class of \d of the .*classes=closest .*={runs}/c1"):
            start(tmp_path / "other", config, evaluate)
    start(path, nearby(runs, seed=1))
    assert np.isfinite(start(tmp_path / "other", config, evaluate)["alpha_delta_x"])


# ---- the layout


def test_pairs_are_laid_out_as_images_by_classes():
    row = np.repeat(np.arange(4), 3)
    chosen = np.array([0, 2, 3, 4, 5, 7, 9])
    assert lay_out(row, chosen, 8).tolist() == [[0, 2, -1], [3, 4, 5], [7, -1, -1], [9, -1, -1]]
    assert lay_out(row, chosen, 2).tolist() == [[0, 2], [3, 4], [5, -1], [7, -1], [9, -1]]
    assert lay_out(row, chosen[:0], 2).size == 0


def test_pairs_are_found_by_place_and_class():
    images = data.Split(np.zeros((3, 1)), np.zeros(3, np.int32), np.array([20, 5, 7], np.int32))
    pairs = Pairs(images, np.array([0, 0, 1, 2, 2]), np.array([0, 2, 1, 0, 1]))
    assert pairs.find(np.array([7, 20, 5]), np.array([1, 2, 1])).tolist() == [4, 1, 2]


def test_equally_close_classes_all_count():
    distance = np.array([[np.inf, 2.0, 2.0005, 3], [-1, np.inf, 4, -0.5], [np.inf, np.inf, np.inf, np.inf]])
    found = closest.nearest(distance, np.array([0, 1, 0]))
    assert found.tolist() == [[False, True, True, False], [True, False, False, False], [False, True, False, False]]
