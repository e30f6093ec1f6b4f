"""launch/paper.py and launch/plan.py: the plan of the paper's runs, and its execution."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradalign_jax import paper
from gradalign_jax.experiment import config_checks
from launch import paper as launcher
from launch import plan

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("scale", plan.SCALES.values(), ids=list(plan.SCALES))
def test_the_plan_is_complete_acyclic_and_trains_and_measures_apart(scale):
    jobs = plan.plan(scale)
    seen = set()
    for job in jobs:
        assert job.name not in seen
        assert set(job.needs) <= seen, job.name  # the jobs it needs come before it, so there is no cycle
        seen.add(job.name)
        assert job.uses.get("evaluate.generator", 0) != job.uses.get("delta_x.generator", 1)
        assert job.uses.get("evaluate.store", 0) != job.uses.get("delta_x.store", 1)
    stages = plan.stages(jobs)
    assert sum(map(len, stages)) == len(jobs)
    before = set()
    for stage in stages:
        assert all(set(job.needs) <= before for job in stage)
        before |= {job.name for job in stage}


def test_the_full_plan_has_every_row_with_five_seeds():
    jobs = plan.plan(plan.FULL)
    trained = [(job.dataset, job.task) for job in jobs if "2" in job.tables and job.task in paper.METHODS]
    assert {key: trained.count(key) for key in trained} == dict.fromkeys(paper.TABLE_2, 5)
    for dataset in paper.DATASETS:
        runs = [j for j in jobs if j.dataset == dataset and j.task == "pgd"]
        at = [j.overrides.get("attack.epsilon", paper.EPSILON[dataset]) for j in runs]
        assert sorted({e: at.count(e) for e in at}.items()) == [(e, 5) for e in plan.epsilons(dataset)]
        assert paper.EPSILON[dataset] in at
        steps = np.diff(np.log2(plan.epsilons(dataset)))
        np.testing.assert_allclose(steps, 0.5, atol=0.12)  # two digits of a grid in steps of √2
    assert {job.dataset for job in jobs if job.task == "project"} == set(plan.INDIRECT)
    assert plan.EPSILON == paper.EPSILON


def test_a_filter_keeps_the_jobs_it_needs_and_nothing_else():
    jobs = plan.plan(plan.FULL, ["mnist35"], table="3")
    assert {job.dataset for job in jobs} == {"mnist35"}
    assert {job.task for job in jobs} == {"vrgan", "pgd"}
    with pytest.raises(ValueError, match="--only=mnst"):
        plan.plan(plan.FULL, ["mnst"])
    with pytest.raises(ValueError, match="--table=9"):
        plan.plan(plan.FULL, table="9")
    for number in (1, -1):
        with pytest.raises(ValueError, match=f"--generators={number}"):
            plan.plan(plan.FULL, generators=number)


@pytest.mark.parametrize("scale", plan.SCALES.values(), ids=list(plan.SCALES))
def test_every_command_is_a_config_that_passes_its_check(scale, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    films = tmp_path / "films"
    films.mkdir()
    jobs, _ = launcher.available([launcher.with_inputs(j, "", str(films)) for j in plan.plan(scale)], scale)
    assert {job.dataset for job in jobs} == {*scale.datasets}
    assert {job.task for job in jobs} >= {*paper.METHODS, "vrgan"}
    for job in jobs:
        for name in job.needs:
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        config = plan.configured(job, scale)
        words = plan.command(job, scale, str(tmp_path))
        assert words[-1] == f"--workdir={tmp_path}/{job.name}"
        for word in words:
            if word.startswith("--config."):
                key, _, value = word.removeprefix("--config.").partition("=")
                kind = type(config.to_dict() and _look_up(config, key))
                config.update_from_flattened_dict({key: kind(value)})
        config_checks.check(config)
        assert job.task == "evaluate" or config.seed == int(job.name.rpartition("seed")[2])


def _look_up(config, dotted):
    for key in dotted.split("."):
        config = config[key]
    return config


def test_the_mini_paper_keeps_to_synthetic_sets_without_data(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    jobs, reasons = launcher.available(plan.plan(plan.MINI), plan.MINI)
    assert {job.dataset for job in jobs} <= {"spheres", "squares", "squares32"}
    assert any("TFDS_DATA_DIR" in reason and "mnist35" in reason for reason in reasons)
    assert any("--films" in reason and "copd" in reason for reason in reasons)


def stand_in(job, root, status=0):
    """Return a command that replaces a run: it writes the result, or fails."""
    result = json.dumps({"dataset": job.dataset, "seconds": 1})
    path = str(root / job.name / "result.json")
    code = "sys.exit('no luck')" if status else f"open({path!r}, 'w').write({result!r})"
    return [sys.executable, "-Sc", f"import sys; {code}"]


def test_run_skips_finished_runs_and_continues_after_a_failure(tmp_path, capfd):
    jobs = plan.plan(plan.MINI, ["mnist35"], table="2")
    jobs = [job for job in jobs if job.task != "evaluate" and "pgd-" not in job.name]
    commands = {job.name: stand_in(job, tmp_path, status=int(job.name == "mnist35/vrgan/seed0")) for job in jobs}
    assert launcher.run(jobs, commands, tmp_path, workers=2, stop=False) == 1
    out, err = capfd.readouterr()
    assert "mnist35/vrgan/seed0 failed: no luck" in err
    assert "mnist35/align/seed0 left out: needs mnist35/vrgan/seed0" in err
    assert [job.name for job in jobs if launcher.finished(tmp_path, job)] == [
        *("mnist35/vrgan/seed1", "mnist35/baseline/seed0", "mnist35/pgd/seed0")
    ]
    assert "3 of 5 runs finished" in out
    commands["mnist35/vrgan/seed0"] = stand_in(jobs[0], tmp_path)
    assert launcher.run(jobs, commands, tmp_path, workers=1, stop=True) == 0
    out, _ = capfd.readouterr()
    assert "mnist35/vrgan/seed1" not in out  # finished before
    assert (tmp_path / "report" / "index.html").exists()
    assert "gradalign_jax" not in (tmp_path / "mnist35/vrgan/seed0/log.txt").read_text()


def test_parallel_runs_are_of_different_data_sets(tmp_path, capfd):
    jobs = [job for job in plan.plan(plan.MINI, table="2") if job.task in ("baseline", "pgd")]
    jobs = [job._replace(uses={}) for job in jobs if job.dataset in ("squares", "mnist", "cifar10")]
    assert launcher.run(jobs, {job.name: stand_in(job, tmp_path) for job in jobs}, tmp_path, workers=2, stop=False) == 0
    started = [line.split()[-1].partition("/")[0] for line in capfd.readouterr().out.splitlines() if line[0] == "["]
    assert started[0] == "squares"
    assert started[1] == "mnist"
    assert sorted(started) == sorted(job.dataset for job in jobs)


def test_hours_come_from_finished_runs_then_given_speeds_then_the_paper(tmp_path):
    jobs = [job for job in plan.plan(plan.MINI, ["spheres"]) if job.task != "evaluate"]
    (tmp_path / "spheres/baseline/seed0").mkdir(parents=True)
    (tmp_path / "spheres/baseline/seed0/result.json").write_text('{"dataset": "spheres", "seconds": 7200}')
    found = launcher.hours(jobs, tmp_path, {"spheres:align": 0.5, "spheres:baseline": 9.0})
    assert found["spheres:baseline"] == (2.0, "1 finished")
    assert found["spheres:align"] == (0.5, "given")
    assert found["spheres:pgd"] == (15.4, "paper's GPUs")
    text = launcher.estimate(jobs, tmp_path, {"spheres:align": 0.5})
    left = 2.0 + 2 * 0.5 + 4 * 15.4 + 3.0  # one baseline, two align, four pgd, one generator
    assert f"{left:.4g} hours left" in text
    assert launcher.hours(jobs, tmp_path, {}, theirs={})["spheres:pgd"] == (
        None,
        "unknown",
    )  # not of the paper's length


@pytest.mark.parametrize("content", ["{", '{"spheres:pgd": null}', "[1]"])
def test_a_damaged_speeds_file_is_named(tmp_path, content, capsys):
    (tmp_path / "speeds.json").write_text(content)
    assert launcher.main(["--estimate", f"--speeds={tmp_path / 'speeds.json'}"]) == 2
    assert "speeds.json must hold hours by run" in capsys.readouterr().err


def test_slurm_arrays_hold_every_unfinished_command_once_and_chain(tmp_path):
    jobs, _ = launcher.available(plan.plan(plan.FULL, ["mnist35"]), plan.FULL)
    (tmp_path / jobs[0].name).mkdir(parents=True)
    (tmp_path / jobs[0].name / "result.json").write_text('{"dataset": "mnist35"}')
    commands = {job.name: ["python", *plan.command(job, plan.FULL, str(tmp_path))] for job in jobs}
    (tmp_path / "slurm").mkdir()
    launcher.write_slurm(jobs[-1:], commands, tmp_path, tmp_path / "slurm", "--time=1:00:00")
    earlier = {file: file.read_text() for file in (tmp_path / "slurm").glob("stage*")}
    launcher.write_slurm(jobs, commands, tmp_path, tmp_path / "slurm", "-p gpu --time=1:00:00")
    assert len(earlier) == 2
    for file, text in earlier.items():  # a waiting array will read them
        assert file.read_text() == text
        file.unlink()
    arrays = sorted((tmp_path / "slurm").glob("stage*.txt"))
    lines = [line for file in arrays for line in file.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == len(jobs) - 1
    submit = (tmp_path / "slurm" / "submit.sh").read_text()
    assert submit.count("sbatch") == len(arrays) >= 2
    for file in (*(tmp_path / "slurm").glob("*.sh"),):
        subprocess.run(["bash", "-n", str(file)], check=True)
        if file.name != "submit.sh":
            count = len(file.with_suffix(".txt").read_text().splitlines())
            assert f"--array=1-{count}\n" in file.read_text()
            assert "\n#SBATCH -p gpu --time=1:00:00\n" in file.read_text()


def test_a_wrong_filter_is_one_line():
    command = [sys.executable, "launch/paper.py", "--only=sphere"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=os.environ, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "--only=sphere" in answer.stderr
