"""launch/deltax.py on a few points of Spheres: its table against NumPy, its files, a training, and what it refuses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax.report import arrays, runs
from launch import deltax, deltax_runs

IMAGES = 6
TINY = (
    *("--config.train.epochs=1", "--config.train.steps_per_epoch=2", "--config.validate.images=6"),
    *("--config.validate.epsilons=(0.1,)", "--config.attack.steps=1"),
    *("--config.evaluate.linf_epsilons=(0.1,)", "--config.evaluate.l2_epsilons=(1.0,)"),
)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A judge that names the closer sphere, in place of a trained one."""
    judge = jax.tree_util.Partial(lambda x: jnp.stack([1.15 - jnp.linalg.norm(x, axis=-1), jnp.zeros(len(x))], -1))
    monkeypatch.setattr(deltax, "load_judge", lambda case, runs: judge)


def command(monkeypatch, *arguments):
    """Run the command in this process."""
    monkeypatch.setattr(sys, "argv", ["deltax.py", *map(str, arguments)])
    deltax.main()


def score(monkeypatch, output, *arguments):
    """Score on Spheres; return the rows by estimator, and the folder."""
    command(monkeypatch, f"--output={output}", "--data=spheres", f"--images={IMAGES}", *arguments)
    found = json.loads((output / "spheres" / "result.json").read_text())
    return {row["estimator"]: row for row in found["estimators"]}, output / "spheres"


def lengths(vectors):
    return np.sqrt((np.asarray(vectors, np.float64) ** 2).sum(-1))


def test_the_table_equals_numpy(tmp_path, monkeypatch, capsys):
    rows, folder = score(monkeypatch, tmp_path, "--only=centroid", "--only=nearest")
    assert list(rows) == ["exact", "nearest", "nearest of 8", "centroid"]
    case = deltax.load("spheres", IMAGES)
    (examples, labels), x = case.examples, np.asarray(case.test.image, np.float64)
    radius = np.where(case.target == 0, 1.0, 1.3)
    assert set(case.target) == {0, 1}
    exact = x * (radius / lengths(x))[:, None] - x
    mean = np.stack([examples[labels == c].mean(0, dtype=np.float64) for c in (0, 1)])[case.target] - x
    nearest = []
    for point, target in zip(x, case.target, strict=True):
        own = np.asarray(examples[labels == target], np.float64)
        nearest.append(own[lengths(own - point).argmin()] - point)
    for name, vectors in {"exact": exact, "centroid": mean, "nearest": np.stack(nearest)}.items():
        cosine = (vectors * exact).sum(-1) / lengths(vectors) / lengths(exact)
        moved = (lengths(x + vectors) > 1.15) == case.target
        np.testing.assert_allclose(rows[name]["cosine"], cosine.mean(), atol=1e-5)
        np.testing.assert_allclose(rows[name]["cosine_sd"], cosine.std(), atol=1e-5)
        np.testing.assert_allclose(rows[name]["length"], lengths(vectors).mean(), rtol=1e-5)
        assert rows[name]["success"] == moved.mean()
    assert rows["exact"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert 0 < rows["centroid"]["success"] < rows["exact"]["success"] == 1  # the test is of both outcomes

    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0][:3] == ["estimator", "cosine with exact Δx", "success %"]
    assert lines[2][:4] == ["exact", "1.000 ± 0.000", "100.0", "0.3"]
    assert [line[0] for line in lines[2:]] == list(rows)
    assert (folder / "estimators.png").read_bytes().startswith(b"\x89PNG")
    (run,), damaged = runs.collect([tmp_path])
    assert not damaged
    pictures = arrays.read_pictures(run, ("delta_x_centroid", "target"))
    np.testing.assert_allclose(pictures["delta_x_centroid"], mean, atol=1e-6)


def test_align_adds_what_its_training_reaches(tmp_path, monkeypatch):
    flags = [f"--align-flag={flag}" for flag in TINY]
    rows, folder = score(monkeypatch, tmp_path, "--only=exact", "--align=centroid", *flags)
    trained = json.loads((folder / "align_centroid" / "result.json").read_text())
    assert trained["config"]["train"]["steps_per_epoch"] == 2
    assert trained["config"]["delta_x"]["name"] == "centroid"
    assert (trained["config"]["evaluate"]["delta_x"], trained["config"]["evaluate"]["images"]) == ("exact", IMAGES)
    assert "epsilon_half" not in rows["exact"]
    assert rows["centroid"]["epsilon_half"] == trained["epsilon_half"]["pgd_linf"]
    assert rows["centroid"]["alpha_delta_x"] == trained["alpha_delta_x"]
    first, second = (folder / "table.md").read_text().splitlines()[2:]
    assert first.endswith("| – | – |")
    assert second.endswith(f"| {trained['epsilon_half']['pgd_linf']:.4g} | {trained['alpha_delta_x']:.3f} |")


def test_the_encoders_penalty_is_the_projections_or_the_given_one(monkeypatch):
    """Only the encoder's: the projection stays the reference."""
    seen = []
    monkeypatch.setattr(deltax, "load_generator", lambda directory, dataset: (None, 8))
    monkeypatch.setattr(deltax, "projected", lambda generate, size, penalty: seen.append(penalty))
    monkeypatch.setattr(deltax.encoder, "make", lambda *_, penalty: seen.append(penalty))
    monkeypatch.setattr(deltax.encoder, "polished", lambda trained, steps, penalty: seen.append(penalty))
    case = deltax.load("spheres", IMAGES)
    for given, expected in ((None, [1.5, 1.5, 1.5]), (0.03, [1.5, 0.03, 0.03])):
        made = deltax.estimators(case, deltax_runs.Runs({"spheres": None}, {}, {}, {}), given)
        assert "projection" not in made  # no run
        made = deltax.estimators(case, deltax_runs.Runs({"spheres": "gan"}, {}, {}, {}), given)
        for name in ("projection", "encoder", "encoder, 30 steps"):
            made[name]()
        assert seen == expected
        seen.clear()


def run(folder, task, dataset, file=""):
    """Write what the command reads of a run before it loads it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"task": task, "data": {"name": dataset}}))
    if file:
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--judge={none}"],
            "--judge={none} holds no readable config.json: give the directory of a finished classifier",
        ),
        (["--judge={gan}"], "--judge={gan} is a gan run: give the directory of a finished classifier run"),
        (["--generator={mlp}"], "--generator={mlp} is a classifier run: give the directory of a finished gan or vrgan"),
        (["--teacher={open}"], "--teacher={open} is unfinished, classifier.safetensors is missing: give the directory"),
        (["--generator={gan}"], "--generator={gan} is of mnist, which is not measured: add --data=mnist"),
        (["--judge={mlp}", "--judge={mlp}"], "--judge={mlp} is a second judge for spheres, beside {mlp}: keep one"),
        (["--align=vrgan"], "--align=vrgan needs --data=spheres or squares32 and --generator=DIR of a vrgan run on it"),
        (["--teacher={mlp}", "--only=teacher"], "{mlp}/classifier.safetensors is damaged"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch, arguments, message):
    places = {
        "none": tmp_path / "none",
        "gan": run(tmp_path / "gan", "gan", "mnist", "generator.safetensors"),
        "mlp": run(tmp_path / "mlp", "classifier", "spheres", "classifier.safetensors"),
        "open": run(tmp_path / "open", "classifier", "spheres"),
    }
    with pytest.raises(SystemExit) as stopped:
        score(monkeypatch, tmp_path / "output", *(argument.format(**places) for argument in arguments))
    assert stopped.value.code.startswith(f"gradalign_jax: {message.format(**places)}")
    assert "\n" not in stopped.value.code


def test_a_training_that_fails_is_named_with_its_log(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        score(monkeypatch, tmp_path, "--only=exact", "--align=exact", "--align-flag=--config.no=1")
    log = tmp_path / "spheres" / "align_exact.log"
    assert stopped.value.code.endswith(f"failed with status 2: see {log}")
    assert log.read_text() == "gradalign_jax: the config has no key 'no'\n"


def test_a_run_serves_its_data_set_and_mnists_gan_the_two_digits(tmp_path):
    gan = run(tmp_path / "gan", "gan", "mnist", "generator.safetensors")
    vrgan = run(tmp_path / "vrgan", "vrgan", "mnist35", "generator.safetensors")
    found = deltax_runs.sort([gan, vrgan], [], [], ["mnist35"])
    assert found == deltax_runs.Runs({"mnist": gan}, {"mnist35": vrgan}, {}, {})
