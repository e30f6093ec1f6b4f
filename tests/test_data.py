"""Data sets against the check values of the authors' code, and the ways in which data can be bad."""

import gzip
import http.server
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gradalign_jax import data
from gradalign_jax.data import cache
from gradalign_jax.data import tfds as tfds_data

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


def test_an_unwritable_cache_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    arrays = cache.fetch(tmp_path / "file" / "folder", "a", {}, build_once(7))
    assert arrays["image"][0, 0] == 7
    assert len(caplog.records) == 1 and "without" in caplog.text


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "gradalign_jax"
    assert cache.folder("elsewhere").name == "elsewhere"


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
        (GOOD * 2.5, [0, 1], "normalisation"),
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


def test_importing_data_is_cheap():
    script = "import sys, gradalign_jax.data; print('tensorflow_datasets' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# --- prepared data: a miniature of each data set, downloaded from this process, prepared and read back

MINI = {
    "mnist": tfds_data.MNIST._replace(counts={"train": 40, "test": 12}),
    "cifar10": tfds_data.CIFAR10._replace(counts={"train": 30, "test": 6}),
}


def originals(name):
    """Images and labels in file order: by the first ten labels, these are the original data."""
    rng, spec = np.random.default_rng(1), MINI[name]
    image = {s: rng.integers(0, 256, (n, *spec.image_shape), dtype=np.uint8) for s, n in spec.counts.items()}
    label = {s: rng.integers(0, 10, n, dtype=np.uint8) for s, n in spec.counts.items()}
    for split, first in spec.first_labels.items():
        label[split][: len(first)] = first[: len(label[split])]
    return image, label


def write_originals(folder):
    image, label = originals("mnist")
    for split, part in (("train", "train"), ("test", "t10k")):
        count = len(label[split])
        for kind, header, body in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28), image[split]),
            ("labels-idx1", struct.pack(">2i", 2049, count), label[split]),
        ):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body.tobytes()))
    image, label = originals("cifar10")
    batches = {f"data_batch_{i + 1}.bin": ("train", slice(6 * i, 6 * i + 6)) for i in range(5)}
    batches["test_batch.bin"] = ("test", slice(None))
    contents = {"batches.meta.txt": "\n".join("abcdefghij").encode() + b"\n\n"}
    for file, (split, rows) in batches.items():
        pixels = image[split][rows].transpose(0, 3, 1, 2).reshape(len(label[split][rows]), -1)
        contents[file] = np.concatenate([label[split][rows][:, None], pixels], axis=1).tobytes()
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tfds folder with both miniatures, made by `prepare.py` from a web server on this machine."""
    from gradalign_jax.data import prepare

    served, data_dir = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("tfds")
    write_originals(served)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    for builder, url in ((prepare.Mnist, root), (prepare.Cifar10, root + "cifar-10-binary.tar.gz")):
        local = type(builder.__name__, (builder,), {"url": url}, skip_registration=True)
        local(data_dir=data_dir, file_format="array_record").download_and_prepare()
    server.shutdown()
    assert "tensorflow" not in sys.modules
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path, monkeypatch):
    """A copy of the miniatures to do harm to; data.load expects their sizes."""
    monkeypatch.setattr(tfds_data, "MNIST", MINI["mnist"])
    monkeypatch.setattr(tfds_data, "CIFAR10", MINI["cifar10"])
    return shutil.copytree(prepared, tmp_path / "tfds")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_prepared_data_come_back_in_the_original_order(copy, tmp_path, name):
    image, label = originals(name)
    count = MINI[name].counts["train"]
    dataset = data.load(name, data_dir=copy, cache_dir=tmp_path)
    place = list(range(count))
    np.random.RandomState(0).shuffle(place)
    for split, expected in (("validation", place[: count // 10]), ("train", place[count // 10 :])):
        part = dataset.splits[split]
        np.testing.assert_array_equal(part.index, expected)
        np.testing.assert_array_equal(part.image, image["train"][expected])
        np.testing.assert_array_equal(part.label, label["train"][expected])
    test = dataset.splits["test"]
    np.testing.assert_array_equal(test.image, image["test"])
    np.testing.assert_array_equal(test.index, count + np.arange(len(test.label)))
    assert (dataset.name, dataset.image_shape) == (name, MINI[name].image_shape)
    # CIFAR-10's miniature has only 6 test labels, too few to be recognised as the original order.
    assert len(dataset.notes) == (0 if name == "mnist" else 1)
    few = data.load(name, data_dir=copy, cache_dir=tmp_path, limit=2)
    assert [len(split.label) for split in few.splits.values()] == [2, 2, 2]


def test_mnist35_keeps_two_digits_in_file_order(copy, tmp_path):
    _, label = originals("mnist")
    dataset = data.load("mnist35", data_dir=copy, cache_dir=tmp_path)
    place = [i for i in range(40) if label["train"][i] in (3, 5)]
    np.random.RandomState(0).shuffle(place)
    held_out = len(place) // 10
    np.testing.assert_array_equal(dataset.splits["train"].index, place[held_out:])
    np.testing.assert_array_equal(dataset.splits["train"].label, label["train"][place[held_out:]] == 5)
    np.testing.assert_array_equal(dataset.splits["test"].label, [y == 5 for y in label["test"] if y in (3, 5)])
    assert dataset.num_classes == 2


def truncate(folder):
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def edit_info(folder, old, new):
    path = folder / "dataset_info.json"
    text = json.dumps(json.loads(path.read_text())).replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "cannot be read"),
        (lambda folder: next(folder.glob("*test*")).unlink(), "cannot be read"),
        (lambda folder: (folder / "features.json").write_text("{"), "cannot be read"),
        (lambda folder: shutil.rmtree(folder), "is not prepared in"),
        (lambda folder: edit_info(folder, "array_record", "tfrecord"), "prepared as tfrecord"),
        (lambda folder: edit_info(folder, '"40"', '"41"'), "does not hold mnist"),
    ],
    ids=["truncated", "file missing", "features", "missing", "tfrecord", "count"],
)
def test_bad_prepared_data_end_in_one_line_with_the_remedy(copy, tmp_path, harm, message):
    harm(copy / "mnist" / "3.0.1")
    with pytest.raises(data.DataError, match=message) as raised:
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    assert "python -m gradalign_jax.data.prepare mnist --data_dir" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_foreign_data_are_refused(copy, tmp_path, monkeypatch):
    shutil.copytree(copy / "mnist", copy / "cifar10", dirs_exist_ok=True)
    shutil.rmtree(copy / "cifar10" / "3.0.2")
    with pytest.raises(data.DataError, match="does not hold cifar10"):
        data.load("cifar10", data_dir=copy, cache_dir=tmp_path)
    # With the real size expected, a miniature is foreign too.
    monkeypatch.setattr(tfds_data, "MNIST", MINI["mnist"]._replace(counts={"train": 60_000, "test": 10_000}))
    with pytest.raises(data.DataError, match="does not hold mnist: examples"):
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)


def test_a_missing_package_is_named(copy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(data.DataError, match="pip install tensorflow_datasets"):
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)


def test_a_cached_start_needs_no_tensorflow_datasets(copy, tmp_path, monkeypatch):
    before = data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    after = data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    np.testing.assert_array_equal(after.splits["train"].image, before.splits["train"].image)


# --- the real data, where they are prepared

CHECKS = {  # sizes of train, validation, test; the first indices of validation and of train
    "mnist": (
        (54_000, 6_000, 10_000),
        [3048, 19563, 58303, 8870, 40228, 31488, 21860, 56864],
        [50234, 22686, 31748, 11359, 32533],
    ),
    "mnist35": ((10_397, 1_155, 1_902), [], []),
    "cifar10": (
        (45_000, 5_000, 10_000),
        [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363],
        [19977, 31768, 43126, 29441, 6245],
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_real_data_have_the_check_indices(name, pytestconfig):
    try:
        tfds_data.find("mnist" if name == "mnist35" else name)
    except data.DataError:
        pytest.skip("not prepared here; set TFDS_DATA_DIR to the folder that holds it")
    sizes, validation, train = CHECKS[name]
    dataset = data.load(name, cache_dir=pytestconfig.cache.mkdir("data"))
    assert tuple(len(split.label) for split in dataset.splits.values()) == sizes
    np.testing.assert_array_equal(dataset.splits["validation"].index[: len(validation)], validation)
    np.testing.assert_array_equal(dataset.splits["train"].index[: len(train)], train)
    if name == "mnist":
        assert not dataset.notes  # the original order was recovered
    if name == "mnist35":
        assert abs(np.mean(dataset.splits["test"].label == 0) - 0.531) < 1e-3
