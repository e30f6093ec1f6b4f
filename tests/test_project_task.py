"""Task `project`: whole runs, the files they leave, and refused inputs."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import mnist, squares32
from generators import lively
from gradalign_jax import data, records
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, config_checks, estimates
from gradalign_jax.experiment.pairs import select
from gradalign_jax.measures import tangent
from gradalign_jax.models import biggan_folded
from gradalign_jax.storage import shards, weights
from gradalign_jax.storage.shards import Store
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import project

LIMIT, BLOCK = 6, 8


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Use a compilation cache, as the entry point does: most runs here share one program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("xla")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory):
    """Return a directory like that of a finished gan run of Squares32."""
    return write_generator(tmp_path_factory.mktemp("gan"))


def write_generator(path, dataset="squares32", classes=2, channels=1, seed=0):
    variables = lively(classes, channels, width=8, seed=seed)[1]
    described = {"num_classes": classes, "channels": channels, "width": 8, "latent_dim": 128, "dataset": dataset}
    weights.write(path / "generator.safetensors", {"raw": variables, "ema": variables}, **described)
    return path


def small(gan_run, **changes):
    config = squares32.get_config("project,smoke")
    config.project.generator = str(gan_run)
    config.data.limit, config.devices = LIMIT, 1
    config.project.steps, config.project.block = (3, 2), BLOCK
    config.update_from_flattened_dict(changes)
    config_checks.check(config)
    return config


def start(path, config):
    workdir = Workdir(path, config.to_dict())
    try:
        return project.run(config, workdir)
    finally:
        workdir.close()


def content(path):
    return {file.name: file.read_bytes() for file in (path / "store").iterdir()}


@pytest.fixture(scope="module")
def finished(gan_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("project")
    return path, start(path, small(gan_run))


def test_a_run_leaves_its_store_result_and_picture(finished):
    path, result = finished
    assert len(content(path)) == 1 + 3  # 2 * 6 images * 2 classes in blocks of 8
    assert result["pairs"] == 2 * LIMIT * 2
    assert result["traces"] == 1  # over all shards
    read = records.read(path / "result.json", "remedy")
    assert list(read.pop("files")) == ["pictures.npz"]
    assert read == json.loads(json.dumps(result))
    assert (path / "projections.png").stat().st_size > 0
    with np.load(path / "pictures.npz") as pictures:  # for the report: all 6 test images
        label, image = pictures["label"], pictures["image"]
        vectors = pictures["projected"][np.arange(LIMIT), 1 - label] - image
        similarity = cosine_similarity(vectors, pictures["delta_x"])
    np.testing.assert_allclose(result["similarity"], similarity.mean(), rtol=1e-4)
    assert "paper 0.661 ± 0.070" in project.table(result)
    assert result["loss"]["test"]["with_penalty"] > result["loss"]["test"]["mean"]


def test_the_tangent_space_at_a_stored_projection(finished, gan_run, tmp_path):
    """A small step of the own class's latent moves the image within it."""
    dataset = data.load("squares32", limit=LIMIT)
    split = dataset.splits["test"]
    space = artifacts.load_tangent_space(finished[0], dataset, split)
    label, index = jnp.asarray(split.label), jnp.asarray(split.index)
    basis = jax.jit(lambda space, *rows: space(*rows))(space, label, index)
    assert basis.shape == (LIMIT, 32 * 32, 128)
    arrays = space.args[0]
    z = arrays["z"][arrays["pair"][arrays["row"][split.index], split.label]]
    generate = jax.jit(artifacts.generate_fn(arrays["generator"], 32))
    step = 1e-3 * np.random.default_rng(0).normal(size=z.shape).astype(np.float32)
    moved = generate(z + step, label) - generate(z - step, label)
    assert tangent.share(basis, moved).min() > 0.99
    start(tmp_path, small(gan_run, **{"project.skip_own_class": True}))
    with pytest.raises(RunError, match=r"no projection of image \d+ onto its own class"):
        artifacts.load_tangent_space(tmp_path, dataset, split)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_change_nothing(devices, finished, gan_run, tmp_path):
    start(tmp_path, small(gan_run, devices=devices))
    assert content(tmp_path) == content(finished[0])


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_run_ends_in_the_same_bytes(finished, gan_run, tmp_path, monkeypatch):
    write = Store.write

    def write_then_die(self, number, **arrays):
        write(self, number, **arrays)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", write_then_die)
        for count in (1, 2):
            with pytest.raises(Killed):
                start(tmp_path, small(gan_run))
            assert len(content(tmp_path)) == 1 + count
    section = squares32.get_config("align").delta_x
    section.store = str(tmp_path)
    with pytest.raises(
        RunError, match=r"no Δx for 4 of the 6 test images in use, the first is image 10202: finish that"
    ):
        estimates.load_delta_x(section, data.load("squares32", limit=LIMIT), "test")
    start(tmp_path, small(gan_run))
    assert content(tmp_path) == content(finished[0])


def test_a_damaged_shard_is_logged_and_computed_again(finished, gan_run, tmp_path, caplog):
    shutil.copytree(finished[0], tmp_path / "run")
    damages = (lambda b: b[:100], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b.replace(b"digest", b"dige\\\\"))
    for number, damage in enumerate(damages):
        file = tmp_path / "run" / "store" / f"00000{number}.safetensors"
        file.write_bytes(damage(file.read_bytes()))
    start(tmp_path / "run", small(gan_run))
    assert content(tmp_path / "run") == content(finished[0])
    for number in range(3):
        assert f"00000{number}.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"project.penalty": 0.3}, "penalty"),
        ({"project.steps": (4, 2)}, "steps"),
        ({"project.solver": "fast"}, "solver"),
        ({"precision.projection": "bfloat16"}, "precision"),
        ({"data.limit": 5}, "data"),
        ({"project.splits": ("test",)}, "splits"),
        ({}, "generator"),
    ],
    ids=str,
)
def test_a_store_with_another_identity_is_refused(change, field, finished, gan_run, tmp_path):
    if not change:
        gan_run = write_generator(tmp_path, seed=1)
    shutil.copytree(finished[0] / "store", tmp_path / "run" / "store")
    with pytest.raises(RunError, match=rf"made with another .*\b{field} \("):
        start(tmp_path / "run", small(gan_run, **change))


def test_another_data_sets_generator_is_refused(tmp_path):
    config = small(write_generator(tmp_path, "mnist", 10, 1))
    with pytest.raises(RunError, match="makes mnist in 10 classes, with 1 channels: give a gan run of squares32"):
        start(tmp_path / "run", config)


def test_the_estimate_is_generated_from_the_latents(finished):
    path, _ = finished
    dataset = data.load("squares32", limit=LIMIT)
    estimate = artifacts.load_projections(path, dataset)
    split = dataset.splits["test"]
    target = np.array([0, 1, 1, 0, 1, 0])
    call = jax.jit(lambda delta_x, *batch: delta_x(*batch))
    vector = call(estimate.delta_x, split.image, split.label, target, split.index)
    pairs = shards.find(path / "store").read()
    place = {pair: i for i, pair in enumerate(zip(pairs["index"], pairs["target"], strict=True))}
    chosen = [place[pair] for pair in zip(split.index, target, strict=True)]
    generator, variables = lively(2, 1, width=8)
    image, _ = jax.jit(generator.apply)(variables, pairs["z"][chosen], target)
    np.testing.assert_allclose(vector, image - split.image, atol=1e-5)
    np.testing.assert_allclose(pairs["loss"][chosen], np.mean((image - split.image) ** 2, axis=(1, 2, 3)), rtol=1e-4)


def test_an_estimate_without_the_needed_images_is_refused(finished, tmp_path):
    with pytest.raises(RunError, match=r"identity\.json is missing: give the directory of a project run"):
        artifacts.load_projections(tmp_path, data.load("squares32", limit=LIMIT))
    section = squares32.get_config("align").delta_x
    section.store = str(finished[0])
    assert estimates.load_delta_x(section, data.load("squares32", limit=LIMIT), "train") is not None
    assert estimates.load_delta_x(section, data.load("squares32", limit=50), "test", LIMIT) is not None
    with pytest.raises(RunError, match=r"no Δx for 4 of the 10 train images in use, the first is image 6"):
        estimates.load_delta_x(section, data.load("squares32", limit=10), "train")
    with pytest.raises(RunError, match="has no Δx for 6 of the 6 validation images"):
        estimates.load_delta_x(section, data.load("squares32", limit=LIMIT), "validation")
    changed = data.load("squares32", limit=LIMIT)
    changed.splits["test"].image[2] += 0.25
    with pytest.raises(RunError, match="projections of other images: image 10202"):
        estimates.load_delta_x(section, changed, "test")
    with pytest.raises(RunError, match="holds projections of squares32: give a run of mnist"):
        artifacts.load_projections(finished[0], changed._replace(name="mnist"))


def test_the_generator_of_training_is_refused_for_measuring(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    dataset = data.load("squares32", limit=LIMIT)
    trained, measuring = (
        artifacts.load_projections(path, dataset).described for path in (finished[0], tmp_path / "copy")
    )
    estimates.check_apart(trained, measuring, same_allowed=True)
    estimates.check_apart(trained, None, same_allowed=False)
    with pytest.raises(RunError, match="the generator whose Δx trains is also the one whose Δx measures"):
        estimates.check_apart(trained, measuring, same_allowed=False)


def test_own_classes_can_be_skipped_and_images_limited(gan_run):
    config = small(gan_run, **{"project.skip_own_class": True, "project.images": 4})
    pairs = select(config, data.load("squares32", limit=LIMIT))
    assert len(pairs.row) == 8
    assert (pairs.images.label[pairs.row] != pairs.target).all()


def test_mnist_is_compared_on_its_own_pixels():
    folded = biggan_folded.fold(lively(10, 1, width=8)[1])
    z, label = jnp.ones((2, 128)), jnp.array([3, 5])
    whole, cut = jax.jit(
        lambda: (biggan_folded.generate(folded, z, label), artifacts.generate_fn(folded, 28)(z, label))
    )()
    chex.assert_trees_all_equal(cut, whole[:, 2:30, 2:30])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"project.generator": ""}, "config.project.generator is missing"),
        ({"project.generator": "nowhere"}, "no such directory"),
        ({"project.splits": ("train", "trian")}, "config.project.splits"),
        ({"project.steps": (600,)}, "config.project.steps"),
        ({"project.steps": (600.0, 150)}, "two integers"),
        ({"precision.projection": "float16"}, "config.precision.projection"),
        ({"project.eps": 0.0}, "config.project.eps"),
        ({"project.solver": "slow"}, "config.project.solver"),
        ({"project.classes": "closest"}, "needs config.project.classifier=DIR"),
        ({"project.classifier": "nowhere"}, "config.project.classifier='nowhere': no such directory"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(change, named, gan_run):
    with pytest.raises(ValueError, match=named):
        small(gan_run, **change)


def test_the_papers_settings():
    config = mnist.get_config("project")
    assert (config.project.penalty, config.project.learning_rate) == (1.5, (0.2, 0.2))
    assert config.project.steps == (600, 150)
