"""Data sets against the check values of the authors' code, and the ways in which data can be bad."""

import errno
import fcntl
import os
import pwd
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gradalign_jax import data
from gradalign_jax.data import cache, directories

# --- Spheres


def test_spheres_lie_on_two_spheres_and_do_not_depend_on_the_division_into_devices():
    dataset = data.load("spheres")
    sample = jax.jit(dataset.sample, static_argnums=1)
    key = jax.random.key(3)
    batch = sample(key, 600)
    assert batch.image.shape == (600, *dataset.image_shape) and batch.image.dtype == jnp.float32
    radius = np.linalg.norm(batch.image, axis=1)
    np.testing.assert_allclose(radius, np.where(batch.label == 0, 1.0, 1.3), rtol=1e-5)
    assert 0.4 < np.mean(batch.label) < 0.6
    assert np.abs(np.mean(batch.image, axis=0)).max() < 0.01  # no preferred direction
    some = jax.jit(lambda indices: dataset.sample(key, indices=indices))
    halves = [some(jnp.arange(start, start + 300)) for start in (0, 300)]
    for whole, parts in zip(batch, zip(*halves, strict=True), strict=True):
        np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-7)
    assert not np.array_equal(batch.label, sample(jax.random.key(4), 600).label)


# --- Squares


def test_squares32_has_the_check_values(tmp_path):
    before = np.random.get_state()[1].copy()
    dataset = data.load("squares32", cache_dir=tmp_path)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    train, validation, test = (dataset.splits[s] for s in ("train", "validation", "test"))
    assert train.image.shape == (10_000, 32, 32, 1) and train.image.dtype == np.float32
    np.testing.assert_allclose(train.image[0, 0, :3, 0], [-1.0, -0.888046, -0.869503], atol=1e-6)
    assert train.image.min() == -1 and train.image.max() == 1
    large = [np.mean(split.label == 0) for split in (train, validation, test)]
    np.testing.assert_allclose(large, [0.4974, 0.505, 0.486], atol=1e-9)  # Table S1
    spans = [(split.index[0], split.index[-1]) for split in (train, validation, test)]
    assert spans == [(0, 9_999), (10_000, 10_199), (10_200, 11_199)]
    data.check(train.image, train.label, dataset.num_classes)
    few = data.load("squares32", cache_dir=tmp_path, limit=37)
    np.testing.assert_array_equal(few.splits["test"].image, test.image[:37])
    np.testing.assert_array_equal(few.splits["test"].index, test.index[:37])


def test_squares_has_the_check_values_and_follows_the_recipe(tmp_path):
    train = data.load("squares", cache_dir=tmp_path, limit=8).splits["train"]
    np.testing.assert_array_equal(train.label, [0, 1, 0, 1, 0, 0, 0, 0])  # t = .8 .5 .8 .5 .8 .8 .8 .8
    np.testing.assert_allclose(train.image[0, 0, :3, 0], [-2.65169, -2.64126, -2.56363], atol=5e-6)
    stream = np.random.RandomState(7)
    scale = stream.choice([0.5, 0.8], size=10_000)
    for image, t in zip(train.image, scale, strict=False):  # one image at a time, as the authors do
        noise = ndimage.gaussian_filter(stream.normal(size=(224, 224)), 2.5, mode="nearest", truncate=4)
        expected, reach = noise / noise.std() * 0.5 - 0.5, int(112 * 0.8 * t)
        expected[112 - reach : 112 + reach, 112 - reach : 112 + reach] += 1
        np.testing.assert_allclose(image[..., 0], expected, atol=1e-6)


# --- the cache


def build_once(value):
    return lambda: {"image": np.full((4, 3), value, np.uint8), "label": np.arange(4)}


def never():
    raise AssertionError("the cache was not used")


def test_cache_returns_what_was_kept_until_the_source_changes(tmp_path):
    first = cache.fetch(tmp_path, "a", {"size": 1}, build_once(7))
    again = cache.fetch(tmp_path, "a", {"size": 1}, never)
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    assert cache.fetch(tmp_path, "a", {"size": 2}, build_once(8))["image"][0, 0] == 8
    assert not list(tmp_path.glob(".*"))  # no partial files


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: flip_a_byte(root / "a-image.npy"),
        lambda root: (root / "a-image.npy").write_bytes((root / "a-image.npy").read_bytes()[:-5]),
        lambda root: (root / "a-image.npy").write_bytes(b""),
        lambda root: (root / "a-label.npy").unlink(),
        lambda root: (root / "a.json").write_text("{"),
        lambda root: (root / "a.json").write_text("[]"),
    ],
    ids=["one bit", "truncated", "empty", "missing", "manifest", "other manifest"],
)
def test_a_damaged_cache_is_rebuilt_with_one_warning(tmp_path, caplog, harm):
    cache.fetch(tmp_path, "a", {}, build_once(7))
    harm(tmp_path)
    caplog.clear()
    assert cache.fetch(tmp_path, "a", {}, build_once(7))["image"].sum() == 4 * 3 * 7
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    cache.fetch(tmp_path, "a", {}, never)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EINVAL], ids=["read-only", "full", "no fsync"])
def test_a_cache_that_cannot_be_written_costs_one_warning_and_no_data(tmp_path, monkeypatch, caplog, code):
    cache.fetch(tmp_path, "a", {}, build_once(7))
    before = sorted(tmp_path.iterdir())

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert cache.fetch(tmp_path, "b", {}, build_once(8))["image"][0, 0] == 8
    assert len(caplog.records) == 1 and os.strerror(code) in caplog.text
    assert sorted(tmp_path.iterdir()) == before  # no partial files
    assert cache.fetch(tmp_path, "a", {}, never)["image"][0, 0] == 7


def test_the_cache_takes_no_lock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, refuse)
    cache.fetch(tmp_path, "a", {}, build_once(7))
    cache.fetch(tmp_path, "a", {}, never)


def test_an_unusable_cache_directory_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    arrays = cache.fetch(tmp_path / "file" / "folder", "a", {}, build_once(7))
    assert arrays["image"][0, 0] == 7
    assert len(caplog.records) == 1 and "without" in caplog.text


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "gradalign_jax"
    assert cache.folder("elsewhere").name == "elsewhere"


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No HOME and no passwd entry, as for an arbitrary user id in a container."""

    def unknown(*_):
        raise KeyError("no passwd entry")

    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directories._temporary_cache.cache_clear()
    yield tmp_path
    directories._temporary_cache.cache_clear()


def test_without_a_home_the_cache_is_private_and_temporary(homeless, caplog):
    root = cache.folder()
    assert root == cache.folder() == homeless / f"gradalign_jax-{os.getuid()}"
    assert root.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1 and "XDG_CACHE_HOME" in caplog.text
    data.load("squares32", limit=2)
    assert list(root.glob("squares32-*.json"))


@pytest.mark.parametrize(
    "occupy",
    [
        lambda path: (path.mkdir(), path.chmod(0o777)),  # anyone may write to it
        lambda path: path.symlink_to(path.parent),
        lambda path: path.touch(),
    ],
    ids=["writable", "link", "file"],
)
def test_without_a_home_a_directory_of_others_is_not_used(homeless, occupy):
    occupy(homeless / f"gradalign_jax-{os.getuid()}")
    root = cache.folder()
    assert root == cache.folder() and root.parent == homeless and root.name != f"gradalign_jax-{os.getuid()}"
    assert root.stat().st_mode & 0o777 == 0o700


def test_without_a_home_a_tilde_is_refused_by_name(homeless):
    cache_dir = homeless / "cache"
    for call in (
        lambda: data.load("cifar10", cache_dir=cache_dir),
        lambda: data.load("mnist", data_dir="~/tfds", cache_dir=cache_dir),
        lambda: data.load("squares32", cache_dir="~/cache", limit=2),
        lambda: data.load("copd", folder="~/films", cache_dir=cache_dir),
        lambda: data.load("copd", folder=homeless, table="~/table.csv", cache_dir=cache_dir),
    ):
        with pytest.raises(data.DataError, match=r"^~/.*: the home directory is unknown; set HOME"):
            call()


def test_a_tilde_is_expanded_in_every_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder("~/a") == tmp_path / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/b")
    assert cache.folder() == tmp_path / "b" / "gradalign_jax"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/c")
    for data_dir, named in ((None, "c"), ("~/d", "d")):
        with pytest.raises(data.DataError, match=f"is not prepared in {tmp_path / named}"):
            data.load("mnist", data_dir=data_dir)
    with pytest.raises(data.DataError, match=f"cannot read the table {tmp_path}/films/metadata.csv"):
        data.load("copd", folder="~/films")
    with pytest.raises(data.DataError, match=f"cannot read the table {tmp_path}/table.csv"):
        data.load("copd", folder=tmp_path, table="~/table.csv")


# --- order and checks


def test_to_float_covers_the_range_exactly():
    byte = np.arange(256, dtype=np.uint8)
    value = np.asarray(jax.jit(data.to_float)(byte))
    np.testing.assert_allclose(value, (byte / 255 - 0.5) / 0.5, atol=6e-8)
    assert value[0] == -1 and value[-1] == 1
    image = jnp.array([-2.5, 0.3])
    np.testing.assert_array_equal(data.to_float(image), image)


def test_an_epoch_is_a_fresh_permutation_that_depends_on_key_and_epoch_alone():
    key = jax.random.key(0)
    order = np.asarray(jax.jit(data.epoch_order, static_argnums=(2, 3))(key, 5, 103, 96))
    assert order.shape == (96,) and order.dtype == np.int32
    assert len(set(order.tolist())) == 96 and order.min() >= 0 and order.max() < 103
    np.testing.assert_array_equal(order, data.epoch_order(key, 5, 103, 96))
    assert not np.array_equal(order, data.epoch_order(key, 6, 103, 96))
    assert sorted(data.epoch_order(key, 0, 103, 103).tolist()) == list(range(103))
    with pytest.raises(ValueError, match="fewer batches"):
        data.epoch_order(key, 0, 10, 11)


def test_gather_picks_examples_in_model_units():
    split = data.Split(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1) * 20, np.arange(3), np.arange(3) + 50)
    batch = jax.jit(data.gather)(jax.device_put(split), jnp.array([2, 0]))
    np.testing.assert_allclose(batch.image, split.image[[2, 0]] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch.label, [2, 0])
    np.testing.assert_array_equal(batch.index, [52, 50])


@pytest.mark.parametrize(("size", "block"), [(10, 4), (8, 4), (1, 5), (200, 50)])
def test_padded_blocks_visit_every_position_once_in_order(size, block):
    positions, mask = data.padded_blocks(size, block)
    assert positions.shape == mask.shape == (int(np.ceil(size / block)), block)
    np.testing.assert_array_equal(positions[mask], np.arange(size))
    assert (positions[~mask] == 0).all() and positions.dtype == np.int32


GOOD = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4, 1)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.where(GOOD > 0.9, np.nan, GOOD), [0, 1], "1 of 2 images hold NaN"),
        ((GOOD + 1) * 127.5, [0, 1], r"\[0, 255\]"),
        ((GOOD + 1) / 2, [0, 1], r"2 \* x - 1"),
        (GOOD * 2.5, [0, 1], "normalization"),
        ((GOOD * 100).astype(np.uint8), [0, 1], "to_float"),
        (GOOD, [0, 3], "0 to 2"),
        (GOOD, [-1, 1], "from -1"),
        (GOOD, [0.0, 1.0], "integers"),
        (GOOD, [0, 1, 1], "differ in number"),
        (GOOD, [[0], [1]], r"\[N\]"),
        (GOOD[:0], np.zeros(0, int), "no examples"),
    ],
)
def test_check_names_what_is_wrong(image, label, message):
    with pytest.raises(ValueError, match=message) as raised:
        data.check(image, np.asarray(label), num_classes=3)
    assert "\n" not in str(raised.value)


def test_check_accepts_good_arrays_and_data_that_leave_the_range_on_purpose():
    data.check(GOOD, np.array([0, 2]), num_classes=3)
    data.check(GOOD * 2.5, np.array([0, 2]), num_classes=3, bounds=None)


@pytest.mark.parametrize(("name", "nearest"), [("cifar", "cifar10"), ("MNIST", "mnist"), ("sqares", "squares")])
def test_an_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(data.DataError, match=f"did you mean '{nearest}'"):
        data.load(name)


def test_a_new_file_is_a_new_data_set(tmp_path):
    # In a process of its own: data sets are found when the package is imported.
    (tmp_path / "mine.py").write_text(
        "from gradalign_jax.data import Dataset\n"
        "def load(data_dir=None, cache_dir=None, limit=None, folder=None):\n"
        "    return Dataset(f'mine {limit} {folder}', 2, (3,), {})\n"
    )
    script = (
        f"from gradalign_jax.data import sets; sets.__path__.append({str(tmp_path)!r})\n"
        "import importlib, gradalign_jax.data as data; importlib.reload(data)\n"
        "print(data.load('mine', limit=4, folder='f').name, len(data.NAMES))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"mine 4 f {len(data.NAMES) + 1}"
    assert {"spheres", "squares", "squares32", "mnist35", "mnist", "cifar10", "copd"} <= set(data.NAMES)


def test_importing_data_is_cheap():
    script = "import sys, gradalign_jax.data; print('tensorflow_datasets' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
