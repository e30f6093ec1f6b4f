"""A run's files: digests against flipped bytes, locks, full disks, older formats, pictures under any settings."""

import errno
import fcntl
import json
import os
import shutil
import subprocess

import matplotlib
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gradalign_jax import config_keys
from gradalign_jax.data import cache
from gradalign_jax.errors import RunError
from gradalign_jax.report import arrays, runs
from gradalign_jax.storage import pictures, shards, weights
from gradalign_jax.storage.atomic import write_atomically
from gradalign_jax.storage.workdir import Workdir

CONFIG = {"seed": 0, "train": {"epochs": 3}}


@pytest.fixture
def workdir(tmp_path):
    held = Workdir(tmp_path, CONFIG)
    yield held
    held.close()


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_flipped_byte_of_a_metrics_line_costs_that_line_alone(workdir):
    written = [{"step": 10 * n, "train/loss": 0.1 * n} for n in (1, 2, 3)]
    workdir.open_metrics(0)
    for line in written:
        workdir.metrics(line["step"], **{"train/loss": line["train/loss"]})
    file = workdir.path / "metrics.jsonl"
    content = file.read_bytes()
    assert workdir.history() == written
    second = range(content.index(b"\n") + 1, content.index(b"\n", content.index(b"\n") + 1))
    for place in second:
        file.write_bytes(flipped(content, place))
        assert workdir.history() == [written[0], written[2]], place


def test_metrics_without_digests_are_read_and_strange_ones_are_not(workdir):
    older = [{"step": 50, "train/loss": 0.7}, {"step": 100, "validation/error": 0.5, "epoch": 0}]
    damaged = ['{"stdp": 50, "train/loss": 0.7}', '{"step": 50, "digesu": "ab"}', "[1]", '{"step": 1']
    (workdir.path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, older), *damaged]))
    assert workdir.history() == older
    workdir.open_metrics(100)
    assert workdir.history() == older
    workdir.open_metrics(100, epoch_open=True)
    assert workdir.history() == older[:1]


def test_a_flipped_byte_of_a_manifest_falls_back_to_the_checkpoint_before(workdir):
    for step in (1, 2):
        workdir.save(step, {"a": np.full(3, float(step))})
    file = workdir.path / "checkpoints" / "2.json"
    content = file.read_bytes()
    for key in (b'"seconds"', b'"files"', b'"digest"', b"manifest.ocdbt"):
        file.write_bytes(flipped(content, content.index(key) + 2))
        np.testing.assert_array_equal(workdir.restore({"a": np.zeros(3)})["a"], 1.0)
    older = {key: value for key, value in json.loads(content).items() if key != "digest"}
    file.write_text(json.dumps(older))  # as before manifests had a digest
    np.testing.assert_array_equal(workdir.restore({"a": np.zeros(3)})["a"], 2.0)


@pytest.mark.parametrize("part", [b'"epoch"', b'"mnist"', b'"digest"', b'"seal"'])
def test_a_flipped_byte_of_a_description_is_found_or_harmless(part, tmp_path):
    file = tmp_path / "classifier.safetensors"
    weights.write(file, {"w": np.ones(3, np.float32)}, epoch=3, dataset="mnist")
    content = file.read_bytes()
    assert weights.read(file)[1]["dataset"] == "mnist"
    file.write_bytes(flipped(content, content.index(part.replace(b'"', b'\\"')) + 3))
    if part == b'"seal"':  # reads as a file from before descriptions had a digest
        assert weights.read(file)[1]["epoch"] == 3
    else:
        with pytest.raises(RunError, match=r"classifier\.safetensors is damaged"):
            weights.read(file)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A folder with every kind of file that a later program reads."""
    folder = tmp_path_factory.mktemp("left")
    held = Workdir(folder, CONFIG)
    held.open_metrics(0)
    for step in (1, 2):
        held.save(step, {"a": np.full(3, float(step))})
        held.metrics(step, loss=0.5)
        held.point(measure="a", epsilon=0.1, first=step, value=[step])
    weights.write(folder / "classifier.safetensors", {"w": np.ones(3, np.float32)}, config=CONFIG)
    store = shards.claim(folder / "store", {"rows": 4, "shard": 2})
    for number in range(2):
        store.write(number, z=np.full((2, 1), number, np.float32))
    cache.fetch(folder / "cache", "entry", {"version": 1}, lambda: {"image": np.arange(9)})
    pictures.write_arrays(folder / "pictures.npz", image=np.ones((2, 3)), label=np.zeros(2, int))
    (folder / "images.csv").write_text("ground_truth_class,predicted_class\n0,1\n1,1\n")
    held.finish({"dataset": "spheres", "accuracy": 0.875, "seconds": 12.5})
    held.close()
    return folder


def read_again(folder, caplog):
    """Return what later programs read, and what they said of damage."""
    said = []

    def attempt(read, *arguments):
        try:
            return read(*arguments)
        except RunError as error:
            assert "\n" not in str(error)
            said.append(str(error))

    found, damaged = runs.collect([folder])
    run = found[0] if found else None
    caplog.clear()
    held = attempt(Workdir, folder, CONFIG)
    read = {
        "checkpoint": attempt(held.restore, {"a": np.zeros(3)}),
        "metrics": held.history(),
        "points": [point["value"] for point in held.points()],
        "result": attempt(held.result),
        "weights": attempt(weights.read, folder / "classifier.safetensors"),
        "store": attempt(lambda: shards.find(folder / "store").read()["z"].ravel().tolist()),
        "cache": cache.fetch(folder / "cache", "entry", {"version": 1}, lambda: {"image": np.arange(9)})["image"],
        "arrays": run and [arrays.read_pictures(run), arrays.read_images_table(run)],
    }
    held.close()
    return str(read), [*said, *caplog.messages, *(f"{each.path} {each.reason}" for each in damaged)]


@pytest.mark.parametrize(
    "pattern",
    [
        *("checkpoints/2/**/*", "checkpoints/2.json", "store/000001.safetensors", "store/identity.json", "result.json"),
        *("cache/entry-image.npy", "cache/entry.json", "config.json", "metrics.jsonl", "evaluation.jsonl"),
        *("classifier.safetensors", "pictures.npz", "images.csv"),
    ],
)
def test_a_flipped_byte_is_found_or_harmless(pattern, left, tmp_path, caplog):
    """At three places of each kind of file: what is read is right, or the file is named."""
    whole, nothing = read_again(left, caplog)
    assert not nothing
    random = np.random.default_rng(0)
    for file in [file.relative_to(left) for file in sorted(left.glob(pattern)) if file.is_file()]:
        content = (left / file).read_bytes()
        for place in random.choice(len(content), min(3, len(content)), replace=False):
            copy = tmp_path / f"{file.name}_{place}"
            shutil.copytree(left, copy)
            (copy / file).write_bytes(flipped(content, place))
            read, said = read_again(copy, caplog)
            if read != whole:
                named = file.parts[0] if file.parts[0] == "checkpoints" else file.name.removesuffix("-image.npy")
                assert any(named.removesuffix(".json") in line for line in said), (file, place, read, said)


def test_a_store_from_before_its_digests_is_continued_and_a_damaged_one_refused(tmp_path):
    identity = {"dataset": "mnist", "rows": 5, "shard": 2}
    (tmp_path / "identity.json").write_text(json.dumps(identity))
    assert shards.claim(tmp_path, identity).shards == 3
    (tmp_path / "identity.json").unlink()
    (tmp_path / ".000001.safetensors.4242").write_bytes(b"half")
    store = shards.claim(tmp_path, identity)
    assert store.identity == identity
    assert not (tmp_path / ".000001.safetensors.4242").exists()
    for number in range(3):
        store.write(number, z=np.full((min(2, 5 - 2 * number), 1), number, np.float32))
    assert store.read()["z"].ravel().tolist() == [0, 0, 1, 1, 2]
    (tmp_path / "000000.safetensors").write_bytes((tmp_path / "000001.safetensors").read_bytes())
    assert store.shard(0) is None
    assert store.read()["z"].ravel().tolist() == [1, 1, 2]  # without the damaged shard
    file = tmp_path / "identity.json"
    file.write_text(file.read_text().replace("mnist", "mnisu"))
    with pytest.raises(RunError, match=r"identity\.json is damaged"):
        shards.find(tmp_path)


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".result.json.4242", tmp_path / "checkpoints" / ".12.json.77"]
    for file in left:
        file.write_text("half")
    Workdir(tmp_path, CONFIG).close()
    assert not any(file.exists() for file in left)
    assert (tmp_path / ".lock").exists()


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "result.json", "{}")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_during_a_checkpoint_is_called_one(workdir, monkeypatch):
    workdir.save(1, {"a": np.ones(3)})
    workdir.save(12, {"a": np.ones(3)})

    def full(self, folder, *_, **__):
        folder.with_name(f"{folder.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Error writing /d/ab: ENOSPC\n" + 300 * "in a thread\n")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "save", full)
        with pytest.raises(RunError) as caught:
            workdir.save(2, {"a": np.ones(3)})
    assert "cannot write checkpoint 2" in str(caught.value)
    assert "No space left on device; free space and type the same command again to resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {entry.name for entry in workdir.checkpoints.iterdir()} == {"1", "1.json", "12", "12.json"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_every_writer_says_that_a_disk_is_full_and_leaves_what_was_there(small_disk, caplog):
    held = Workdir(small_disk / "run", CONFIG)
    held.save(1, {"a": np.ones(3)})
    held.point(measure="a", value=1)
    store = shards.claim(held.path / "store", {"rows": 8, "shard": 4})
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free))
    before = {file: file.read_bytes() for file in held.path.rglob("*") if file.is_file()}
    big = np.arange(100_000.0)
    writers = {
        "result.json": lambda: held.finish({"dataset": "x" * 9000}),
        "evaluation.jsonl": lambda: held.point(measure="b", value=["x"] * 9000),
        "classifier.safetensors": lambda: weights.write(held.path / "classifier.safetensors", {"w": big}),
        "000000.safetensors": lambda: store.write(0, z=big),
        "checkpoint 2": lambda: held.save(2, {"a": big}),
        "samples.png": lambda: pictures.draw_mosaic(held.path / "samples.png", np.random.rand(2, 2, 64, 64, 1)),
        "pictures.npz": lambda: pictures.write_arrays(held.path / "pictures.npz", image=big),
    }
    for name, write in writers.items():
        with pytest.raises(RunError) as caught:
            write()
        assert name in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert cache.fetch(small_disk / "cache", "entry", {}, lambda: {"image": big})["image"] is big
    assert "cannot write entry to the cache" in caplog.text
    (small_disk / "ballast").unlink()
    after = {file: file.read_bytes() for file in held.path.rglob("*") if file.is_file()}
    points = held.path / "evaluation.jsonl"
    assert after.pop(points).startswith(before.pop(points))  # a torn line may follow
    assert after == before
    assert [point["value"] for point in held.points()] == [1]
    np.testing.assert_array_equal(held.restore({"a": np.zeros(3)})["a"], 1.0)
    held.close()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_a_warning(code, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    Workdir(tmp_path, CONFIG).close()
    assert f"cannot lock {tmp_path}" in caplog.text


def test_a_finished_run_in_a_read_only_directory_is_shown(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path, CONFIG)
    workdir.finish({"accuracy": 0.5})
    workdir.close()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    opened = open

    def read_only(file, mode="r", *arguments, **options):
        if str(file).startswith(str(tmp_path)) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(file, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", read_only)
    assert Workdir(tmp_path, CONFIG).result() == {"accuracy": 0.5}
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    (tmp_path / "result.json").unlink()
    with pytest.raises(RunError, match=r"cannot write --workdir=.*Read-only file system"):
        Workdir(tmp_path, CONFIG)


def test_a_key_that_is_newer_than_the_run_counts_as_what_runs_did_before_it(tmp_path, caplog):
    Workdir(tmp_path, CONFIG).close()
    Workdir(tmp_path, CONFIG | {"evaluate": {"cw_images": 0}}).close()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(RunError, match=r"another config: evaluate.cw_images \(0 -> 5\)"):
        Workdir(tmp_path, CONFIG | {"evaluate": {"cw_images": 5}})
    with pytest.raises(RunError, match=r"another config: later \(None -> 1\)"):
        Workdir(tmp_path, CONFIG | {"later": 1})
    (tmp_path / "result.json").write_text('{"accuracy": 0.5}')
    shown = Workdir(tmp_path, CONFIG | {"later": 1})  # finished: shown all the same
    assert shown.result() == {"accuracy": 0.5}
    assert "made without config.later" in caplog.text
    shown.close()
    with pytest.raises(RunError, match=r"another config: seed \(0 -> 1\)"):
        Workdir(tmp_path, CONFIG | {"seed": 1})


def test_changes_are_those_of_the_flat_configs():
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": None}
    assert config_keys.changes(before, now) == {"a.c": (2, 4), "d": (3, None), "e": (None, None)}
    assert config_keys.changes(before, now, free=("a.c", "d", "e")) == {}
    assert config_keys.described({"a.c": (2, 4)}) == "a.c (2 -> 4)"


def test_a_run_from_before_the_newer_keys_is_resumed_with_their_defaults(tmp_path):
    """Defaults with a list, too, whose JSON is another type than a config's tuple."""
    assert json.loads(json.dumps(config_keys.BEFORE)) == config_keys.BEFORE
    Workdir(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    Workdir(tmp_path, CONFIG | {"evaluate": {"gradients": (), "measures": ()}}).close()


def test_pictures_are_the_same_under_any_settings(tmp_path):
    curves = {"pgd_linf": {"epsilons": [0, 0.1, 0.2], "errors": [0.1, 0.4, 0.9], "threshold": 0.5}}
    image = np.linspace(-1, 1, 2 * 500).reshape(2, 500)
    for name, settings in (("a", {}), ("b", {"text.usetex": True, "font.size": 30, "savefig.format": "pdf"})):
        with matplotlib.rc_context(settings):
            pictures.draw_curves(tmp_path / f"{name}_curves.png", curves)
            pictures.draw_gradients(tmp_path / f"{name}_gradients.png", image, -image, None)
    for kind in ("curves", "gradients"):
        first, second = ((tmp_path / f"{name}_{kind}.png").read_bytes() for name in "ab")
        assert first == second
        assert first.startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_names_its_file(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*missing/m\.png"):
        pictures.draw_mosaic(tmp_path / "missing" / "m.png", np.zeros((1, 1, 4, 4, 1)))
