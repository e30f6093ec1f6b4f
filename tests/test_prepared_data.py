"""MNIST and CIFAR-10 from prepared records and from idx files: miniature, damaged, and the real ones where present."""

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
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import data
from gradalign_jax.data import idx, public
from gradalign_jax.data import tfds as tfds_data

MINI = {
    "mnist": public.MNIST._replace(counts={"train": 40, "test": 12}),
    "cifar10": public.CIFAR10._replace(counts={"train": 30, "test": 6}),
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
    server.server_close()
    assert "tensorflow" not in sys.modules
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path, monkeypatch):
    """A copy of the miniatures to do harm to; data.load expects their sizes."""
    monkeypatch.setattr(public, "MNIST", MINI["mnist"])
    monkeypatch.setattr(public, "CIFAR10", MINI["cifar10"])
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
    # CIFAR-10's miniature has only 6 test labels, too few to be recognized as the original order.
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
def test_bad_prepared_data_end_in_one_line_with_the_remedy(copy, tmp_path, harm, message, refused):
    harm(copy / "mnist" / "3.0.1")
    with refused(data.DataError, message) as raised:
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    assert "python -m gradalign_jax.data.prepare mnist --data_dir" in str(raised.value)


def test_foreign_data_are_refused(copy, tmp_path, monkeypatch):
    shutil.copytree(copy / "mnist", copy / "cifar10", dirs_exist_ok=True)
    shutil.rmtree(copy / "cifar10" / "3.0.2")
    with pytest.raises(data.DataError, match="does not hold cifar10"):
        data.load("cifar10", data_dir=copy, cache_dir=tmp_path)
    # With the real size expected, a miniature is foreign too.
    monkeypatch.setattr(public, "MNIST", MINI["mnist"]._replace(counts={"train": 60_000, "test": 10_000}))
    with pytest.raises(data.DataError, match="does not hold mnist: examples"):
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)


def test_a_missing_package_is_named(copy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(data.DataError, match="pip install tensorflow_datasets"):
        data.load("mnist", data_dir=copy, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("array_record.python", "array_record"),
        ("immutabledict", "immutabledict"),
        ("tree", "dm-tree"),
        ("PIL", "PIL"),
    ],
)
def test_a_package_missing_inside_tensorflow_datasets_is_named(copy, tmp_path, module, named):
    # A process of its own: here the packages are imported already.
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from gradalign_jax import data\n"
        "from gradalign_jax.data import public\n"
        f"public.MNIST = public.MNIST._replace(counts={MINI['mnist'].counts})\n"
        f"data.load('mnist', data_dir={str(copy)!r}, cache_dir={str(tmp_path / 'cache')!r})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert "DataError: reading mnist needs" in last and named in last and "damaged" not in last
    assert found.stderr.count("Traceback") == 2  # the error and its cause, nothing logged beside them


def test_a_cached_start_needs_no_tensorflow_datasets(copy, tmp_path, monkeypatch):
    before = data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    after = data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    np.testing.assert_array_equal(after.splits["train"].image, before.splits["train"].image)


# --- MNIST's original files


@pytest.fixture
def originals_dir(tmp_path, monkeypatch):
    """The miniature as idx files, gzipped."""
    monkeypatch.setattr(public, "MNIST", MINI["mnist"])
    folder = tmp_path / "idx"
    folder.mkdir()
    write_originals(folder)
    return folder


def unpack(folder):
    for path in list(folder.glob("*ubyte.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def move(folder):
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for path in list(folder.glob("*ubyte.gz")):
        path.rename(folder / "MNIST" / "raw" / path.name)


@pytest.mark.parametrize("change", [lambda folder: None, unpack, move], ids=["gz", "plain", "torchvision"])
def test_idx_files_give_the_data_of_the_records(copy, originals_dir, tmp_path, monkeypatch, change):
    change(originals_dir)
    for name in ("mnist", "mnist35"):
        expected = data.load(name, data_dir=copy, cache_dir=tmp_path / "cache")
        found = data.load(name, data_dir=originals_dir, cache_dir=tmp_path / "unused")
        assert found.notes == expected.notes
        for split, part in expected.splits.items():
            for array, other in zip(found.splits[split], part, strict=True):
                np.testing.assert_array_equal(array, other)
                assert array.dtype == other.dtype
    assert not (tmp_path / "unused").exists()


def edit(name, change):
    def harm(folder):
        content = bytearray((folder / name).read_bytes())
        change(content)
        (folder / name).write_bytes(content)

    return harm


LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / LABELS).unlink(), "without train-labels-idx1-ubyte: add it"),
        (edit(LABELS, lambda content: content.pop()), f"{LABELS} is not a whole idx file"),
        (edit(LABELS, lambda content: content.append(0)), f"{LABELS} is not a whole idx file"),
        (edit(LABELS, lambda content: content.clear()), f"{LABELS} is not a whole idx file"),
        (edit(LABELS, lambda content: content.__delitem__(slice(3, None))), f"{LABELS} is not a whole idx file"),
        (edit(LABELS, lambda content: content.__setitem__(2, 0x0D)), f"{LABELS} is not a whole idx file"),
        (edit(LABELS, lambda content: content.__setitem__(8, 9)), f"{LABELS} does not hold MNIST's labels"),
        (edit(LABELS, lambda content: content.__setitem__(slice(0, 2), b"\x1f\x8b")), f"{LABELS} cannot be read"),
        (lambda folder: shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / LABELS), r"labels \[12\], not"),
    ],
    ids=["missing", "short", "long", "empty", "header", "float", "another set", "gzip", "test for train"],
)
def test_bad_idx_files_are_named(originals_dir, tmp_path, harm, message, refused):
    unpack(originals_dir)
    harm(originals_dir)
    with refused(data.DataError, message):
        data.load("mnist", data_dir=originals_dir, cache_dir=tmp_path / "cache")


def test_records_in_another_order_are_noted(copy, tmp_path, monkeypatch):
    labels = {split: first[::-1] for split, first in MINI["mnist"].first_labels.items()}
    monkeypatch.setattr(public, "MNIST", MINI["mnist"]._replace(first_labels=labels))
    dataset = data.load("mnist", data_dir=copy, cache_dir=tmp_path)
    assert "orders its images differently" in dataset.notes[0]


# --- the real data, where they are prepared

REAL_IDX = sorted(Path(__file__).resolve().parents[2].glob("*/mnist_idx"))


def require_prepared(name):
    try:
        tfds_data.find(name)
    except data.DataError:
        pytest.skip("not prepared here; set TFDS_DATA_DIR to the directory that holds it")


@pytest.mark.skipif(not REAL_IDX, reason="no folder mnist_idx beside the checkout")
def test_the_records_have_the_order_of_the_original_files(pytestconfig):
    require_prepared("mnist")
    image, label = idx.read(
        (REAL_IDX[0] / "t10k-images-idx3-ubyte", REAL_IDX[0] / "t10k-labels-idx1-ubyte"),
        10_000,
        public.MNIST.first_labels["test"],
    )
    splits = data.load("mnist", cache_dir=pytestconfig.cache.mkdir("data")).splits
    np.testing.assert_array_equal(splits["test"].image, image)
    np.testing.assert_array_equal(splits["test"].label, label)
    training = np.frombuffer((REAL_IDX[0] / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    for split in ("train", "validation"):
        np.testing.assert_array_equal(splits[split].label, training[splits[split].index])


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
    require_prepared("mnist" if name == "mnist35" else name)
    sizes, validation, train = CHECKS[name]
    dataset = data.load(name, cache_dir=pytestconfig.cache.mkdir("data"))
    assert tuple(len(split.label) for split in dataset.splits.values()) == sizes
    np.testing.assert_array_equal(dataset.splits["validation"].index[: len(validation)], validation)
    np.testing.assert_array_equal(dataset.splits["train"].index[: len(train)], train)
    if name == "mnist":
        assert not dataset.notes  # the original order was recovered
    if name == "mnist35":
        assert abs(np.mean(dataset.splits["test"].label == 0) - 0.531) < 1e-3
        assert "53.2, 52.0, 53.1 % of train, validation and test" in dataset.notes[0]
