"""`kill -9` at random instants over every task: started again, a run ends in the same bytes.

    python -m pytest tests/test_kills.py                      # the share of CI
    python -m pytest tests/test_kills.py --kills=200 -s       # a campaign; prints the kills by place

A kill falls at a random time of the run, or within a step that is short: a rename, a line half appended, a picture, a
checkpoint. Each start is a fork of a server that has imported everything, and runs the command line's own `main`.
A start costs seconds of tracing, so that CI kills two of the tasks; fewer than 100 kills are divided between these.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from gradalign_jax import main
from gradalign_jax.storage import checkpoints
from gradalign_jax.storage.workdir import Workdir
from test_project_task import write_generator

ROOT = Path(__file__).resolve().parents[1]
_FEW = {"evaluate.images": 40, "evaluate.block": 20, "evaluate.linf_epsilons": (0.01, 0.4), "devices": 1}
_CLASSIFIER = _FEW | {
    **{"model.hidden": (16,), "train.epochs": 3, "train.steps_per_epoch": 12, "train.log_every": 4, "attack.steps": 2},
    **{"validate.epsilons": (0.01, 0.4), "evaluate.l2_epsilons": (0.1, 4.0), "train.checkpoint_minutes": 0.001},
}
# By task: the config's argument, the share of the kills, and what makes the run small.
TASKS = {
    "baseline": ("spheres.py:baseline,smoke", 4, _CLASSIFIER),
    "align": ("spheres.py:align,smoke", 2, _CLASSIFIER),
    "pgd": ("spheres.py:pgd,smoke", 2, _CLASSIFIER),
    "vrgan": (
        "spheres.py:vrgan,smoke",
        4,
        {"model.hidden": (16,), "train.checkpoint_minutes": 0.001, "devices": 1},
    ),
    "gan": (
        "squares32.py:gan,smoke",
        2,
        {"gan.width": 4, "gan.latent_dim": 4, "gan.iterations": 8, "gan.sample_every": 2, "gan.sample_columns": 2}
        | {"data.limit": 200, "train.batch_size": 8, "train.log_every": 1, "gan.check_images": 50, "devices": 1},
    ),
    "project": (
        "squares32.py:project,smoke",
        4,
        {"data.limit": 16, "project.steps": (2, 1), "project.block": 4, "project.generator": "generator", "devices": 1},
    ),
    "evaluate": (
        "spheres.py:evaluate,smoke",
        2,
        {"classifier": "baseline", "evaluate.l2_epsilons": (0.1, 4.0), "attack.steps": 2, "evaluate.suite_steps": 4}
        | {"evaluate.cw_images": 8, "evaluate.cw_iterations": 10, "evaluate.suite": "autoattack"}
        | {"evaluate.suite_queries": 10, "evaluate.square_queries": 20}
        | _FEW,
    ),
}
CI = ("baseline", "project")
PLACES = ("time", "time", "time", "rename", "append", "picture", "checkpoint")
ABSENT = {"project": ("append", "checkpoint"), "evaluate": ("checkpoint",)}  # or too rare


def command(task, path, wholes):
    """Return the command line of a task's run in `path`; inputs are the uninterrupted runs."""
    argument, _, changes = TASKS[task]
    inputs = {key: str(wholes / value) for key, value in changes.items() if value in ("baseline", "generator")}
    options = [f"--config.{key}={value}" for key, value in {**changes, **inputs}.items()]
    return ["main", f"--config={ROOT}/configs/{argument}", *options, f"--workdir={path}"]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place, number):
    """Make this process kill itself at the `number`-th visit of a place."""
    left = [number]

    def at(function, fault):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                fault(*arguments)
            return function(*arguments, **options)

        return wrapped

    def half_a_line(run, name, values):
        with open(run.path / name, "ab") as file:
            file.write(json.dumps(values).encode()[: 9 * number])
        die()

    def soon(*_):
        threading.Timer(0.02 * number, die).start()

    if place == "rename":
        os.replace = at(os.replace, die)
    elif place == "append":
        Workdir._append = at(Workdir._append, half_a_line)
    elif place == "picture":
        from matplotlib.figure import Figure

        Figure.savefig = at(Figure.savefig, die)
    elif place == "checkpoint":
        Workdir.save = at(Workdir.save, soon)


def start(arguments, place, number):
    """Run a command line in this process, which is a fork."""
    os.chdir(ROOT)
    sys.stdout = sys.stderr = open(f"{arguments[-1].partition('=')[2]}.log", "a")  # noqa: SIM115
    arm(place, number)
    sys.argv = arguments  # where the config flag looks for overrides
    main.main(main._parse(arguments))


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    tasks = [f"gradalign_jax.tasks.{name}" for name in ("classifier", "evaluate", "vrgan", "gan", "project")]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["PYTHONPATH"] = f"{ROOT}:{Path(__file__).parent}"  # the server's sys.path is not this process's
    context.set_forkserver_preload(["test_kills", "orbax.checkpoint", "tensorboardX", *tasks])
    return context


def ended(server, arguments, place="", number=0, seconds=None):
    """Return the exit status of one start, and how long it lived; killed after `seconds`, if given."""
    process, started = server.Process(target=start, args=(arguments, place, number)), time.monotonic()
    process.start()
    process.join(seconds)
    process.kill()  # no effect on one that has ended
    process.join()
    return process.exitcode, time.monotonic() - started


@pytest.fixture(scope="module")
def wholes(server, tmp_path_factory):
    """The folder of uninterrupted runs, and a function that makes one on first use and returns its seconds."""
    folder, seconds = tmp_path_factory.mktemp("whole"), {}
    (folder / "generator").mkdir()
    write_generator(folder / "generator")

    def made(task):
        if TASKS[task][2].get("classifier"):
            made("baseline")
        if task not in seconds:
            status, seconds[task] = ended(server, command(task, folder / task, folder))
            assert status == 0, (folder / f"{task}.log").read_text()
        return seconds[task]

    return folder, made


def content(path):
    """Return what a run leaves: the bytes of every file, without times and what depends on them."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and not name.startswith(("checkpoints/", "tensorboard/", ".lock", "evaluation.jsonl")):
            found[name] = file.read_bytes()
    return found, untimed(json.loads(found.pop("result.json")))


def untimed(result):
    """Return a result without times, at any depth, and what depends on them."""
    if not isinstance(result, dict):
        return result
    return {key: untimed(value) for key, value in result.items() if key not in ("seconds", "traces", "seal")}


@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_ends_in_the_same_bytes(task, server, wholes, tmp_path, pytestconfig):
    folder, made = wholes
    wanted = pytestconfig.getoption("kills")
    if wanted < 100 and task not in CI:
        pytest.skip("killed from --kills=100 on")
    kills = -(-wanted // len(CI)) if wanted < 100 else -(-wanted * TASKS[task][1] // sum(t[1] for t in TASKS.values()))
    seconds, draw, places = made(task), random.Random(task), Counter()
    path, expected, finished = tmp_path / task, content(folder / task), 0
    arguments = command(task, path, folder)
    while True:
        present = [place for place in PLACES if place not in ABSENT.get(task, ())]
        place = draw.choice(present) if places.total() < kills else "none"
        limit = draw.uniform(0, seconds / 2) if place == "time" else None  # the first start compiled, too
        status, _ = ended(server, arguments, place, draw.randint(1, 2 if place == "picture" else 6), limit)
        places[place] += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL), Path(f"{path}.log").read_text()
        if status == 0:
            assert content(path) == expected, places
            assert not [file for file in path.rglob(".*") if re.fullmatch(r"\..+\.\d+", file.name)]
            steps = [entry.name for entry in (path / "checkpoints").iterdir() if entry.is_dir()]
            assert all((path / "checkpoints" / f"{step}.json").exists() for step in steps)
            assert len(steps) <= checkpoints.KEEP
            finished += 1
            if place == "none":
                break
            shutil.rmtree(path)
    print(f"\n{task}: {places.total()} kills ({dict(+places)}), {finished} finished runs, all equal")
