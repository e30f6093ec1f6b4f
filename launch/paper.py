"""All runs behind the paper's tables, and the report: `python launch/paper.py [--scale=mini] [--run]`.

Prints the command of every run, each after the runs it needs. --run executes them here and skips finished ones;
--worker shares them with other workers that have the same --root, and --status shows their state; --slurm=DIR writes
job arrays; --estimate adds up hours. Arguments after a bare -- are added to every command:
`python launch/paper.py --only=cifar10 --run -- --config.devices=4`.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import paper, records
from launch import plan, worker
from launch.plan import Job, Scale

REAL = ("mnist35", "mnist", "cifar10")  # read through tensorflow_datasets


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    arguments, extra = parse_arguments(argv[:at]), argv[at + 1 :]
    try:
        return act(arguments, extra)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"gradalign_jax: {error}", file=sys.stderr)
        return 2


def act(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Plan the runs; print, estimate, submit or execute them."""
    scale = plan.SCALES[arguments.scale]
    jobs = plan.plan(scale, arguments.only, arguments.table, arguments.generators)
    jobs, left_out = available([with_inputs(job, arguments.pretrained, arguments.films) for job in jobs], scale)
    for reason in left_out:
        print(f"# {reason}", file=sys.stderr)
    root = Path(arguments.root or f"runs/{'paper' if arguments.scale == 'full' else arguments.scale}")
    python = [*shlex.split(arguments.prefix), sys.executable]
    commands = {job.name: [*python, *plan.command(job, scale, str(root), extra)] for job in jobs}
    printed = paper.HOURS if scale is plan.FULL else {}  # holds for runs of the paper's length
    if arguments.estimate:
        print(estimate(jobs, root, read_speeds(arguments.speeds) if arguments.speeds else {}, printed))
    elif arguments.slurm:
        print(write_slurm(jobs, commands, root, arguments.slurm, arguments.slurm_options))
    elif arguments.status:
        print(worker.status(jobs, root, finished, hours(jobs, root, {}, printed), arguments.lease_seconds))
    elif arguments.run or arguments.worker:
        if scale is plan.MINI:  # tiny runs take longer to compile than to run
            os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        if arguments.worker:
            return worker.work(jobs, commands, root, finished, arguments.lease_seconds)
        return run(jobs, commands, root, arguments.jobs or (2 if scale is plan.MINI else 1), arguments.stop)
    else:
        show(jobs, commands, root)
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line, up to a bare --."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale",
        choices=list(plan.SCALES),
        default="full",
        help="full: the paper's; short: Spheres and MNIST-3/5, planned for 90 minutes on two CPU cores; "
        "mini: tiny runs, minutes (%(default)s)",
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], metavar="NAMES", help="data sets, comma-separated"
    )
    parser.add_argument("--table", default="", help="1, 2, 3, 3.2 or S2, and the runs it needs; default: all")
    parser.add_argument(
        "--generators", type=int, default=0, metavar="N", help="estimates of Δx per data set; default: the scale's"
    )
    parser.add_argument(
        "--pretrained", default="", metavar="FILE", help="ImageNet weights, for the runs that start from them"
    )
    parser.add_argument(
        "--films", default="", metavar="DIR", help="folder of chest radiographs and metadata.csv, for copd"
    )
    parser.add_argument(
        "--root", default="", metavar="DIR", help="directory of the runs; default: runs/paper, runs/short or runs/mini"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="execute unfinished runs here, then write the report")
    action.add_argument("--worker", action="store_true", help="execute runs beside other workers, until none is left")
    action.add_argument("--status", action="store_true", help="runs that are done, running, waiting, failed")
    action.add_argument("--slurm", type=Path, metavar="DIR", help="write job arrays and submit.sh")
    action.add_argument(
        "--estimate", action="store_true", help="hours, from finished runs, --speeds, or the paper (full)"
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="--run: runs at a time; default: 1 (mini: 2)")
    parser.add_argument(
        "--lease-seconds", type=float, default=120.0, metavar="S", help="--worker: when a silent worker counts as dead"
    )
    parser.add_argument("--stop", action="store_true", help="--run: stop at the first failure")
    parser.add_argument(
        "--prefix", default="", metavar="COMMAND", help='prefix of every command, for example "nice" or "srun --gpus=1"'
    )
    parser.add_argument(
        "--slurm-options",
        default="--gres=gpu:1 --cpus-per-task=8 --time=24:00:00",
        metavar="OPTIONS",
        help="#SBATCH options (%(default)s)",
    )
    parser.add_argument("--speeds", type=Path, metavar="JSON", help='file with hours of a run, {"cifar10:pgd": 1.5}')
    return parser.parse_args(argv)


# ---- jobs


def available(jobs: Sequence[Job], scale: Scale) -> tuple[list[Job], list[str]]:
    """Return the jobs that can run, and a line for each reason why others cannot."""
    real = bool(os.environ.get("TFDS_DATA_DIR")) or scale is not plan.MINI
    kept: dict[str, Job] = {}
    reasons: dict[str, dict[str, None]] = {}

    def leave_out(reason: str, kind: str) -> None:
        reasons.setdefault(reason, {})[kind] = None

    for job in jobs:
        absent = {key: name for key, name in job.uses.items() if name not in kept}
        if job.dataset == "copd" and "data.folder" not in job.overrides:
            leave_out("chest radiographs are not public: give your own with --films=DIR", "copd")
        elif job.dataset in REAL and not real:
            leave_out("TFDS_DATA_DIR is not set, so --scale=mini has only synthetic data sets", job.dataset)
        elif plan.configured(job, scale) is None:
            leave_out("no such config", f"{job.dataset}:{job.task}")
        elif any(not key.startswith("evaluate.") for key in absent):
            leave_out("a run it needs is left out", f"{job.dataset}:{job.task}")
        else:
            if absent:
                leave_out("no estimate of Δx", f"{job.dataset}:{job.task}'s ᾱ_Δx")
            kept[job.name] = job._replace(uses={key: name for key, name in job.uses.items() if key not in absent})
    return list(kept.values()), [f"left out, {reason}: {', '.join(kinds)}" for reason, kinds in reasons.items()]


def with_inputs(job: Job, pretrained: str, films: str) -> Job:
    """Return the job with ImageNet weights, if the paper's starts from them, and with the folder of radiographs."""
    own = {}
    if pretrained and job.dataset in plan.IMAGENET and job.task in (*paper.METHODS, "vrgan"):
        own["model.pretrained"] = pretrained
    if films and job.dataset == "copd":
        own["data.folder"] = films
    return job._replace(overrides={**job.overrides, **own})


def finished(root: Path, job: Job) -> Mapping | None:
    """Return the job's result, or None if it is not finished or its file is damaged."""
    try:
        return records.parse((root / job.name / "result.json").read_bytes())
    except (OSError, ValueError):
        return None


# ---- actions


def show(jobs: Sequence[Job], commands: Mapping[str, list[str]], root: Path) -> None:
    """Print the commands stage by stage, those of finished runs as comments."""
    for i, stage in enumerate(plan.stages(list(jobs)), 1):
        print(f"# stage {i}: {len(stage)} runs")
        for job in stage:
            text = shlex.join(commands[job.name])
            print(f"# finished: {text}" if finished(root, job) else text)
    print(f"# last\n{sys.executable} -m gradalign_jax.report {root} --output={root / 'report'}")


def run(jobs: Sequence[Job], commands: Mapping[str, list[str]], root: Path, workers: int, stop: bool) -> int:
    """Execute unfinished runs, `workers` at a time, of different data sets if possible; return the exit status.

    A failure affects only the runs that need the failed one.
    """
    started, lost, running = time.monotonic(), {}, {}
    left = [job for job in jobs if not finished(root, job)]
    total, number = len(left), 0
    with ThreadPoolExecutor(workers) as pool:
        while left or running:
            waiting = {job.name for job in (*left, *running.values())}
            for job in [job for job in left if any(name in lost for name in job.needs)]:
                lost[job.name] = f"left out: needs {next(name for name in job.needs if name in lost)}"
                left.remove(job)
            while len(running) < workers and (ready := [job for job in left if not waiting & set(job.needs)]):
                # Runs of one data set share compiled programs: in sequence, later ones find them in the cache.
                busy = {job.dataset for job in running.values()}
                job = next((job for job in ready if job.dataset not in busy), ready[0])
                left.remove(job)
                number += 1
                print(f"[{number}/{total}, {(time.monotonic() - started) / 60:.1f} min] {job.name}", flush=True)
                running[pool.submit(call, commands[job.name], root / job.name)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if failure := future.result():
                    lost[job.name] = failure
                    print(f"gradalign_jax: {job.name} {failure}", file=sys.stderr, flush=True)
                    left = [] if stop else left
    for name, reason in lost.items():
        if reason.startswith("left out"):
            print(f"gradalign_jax: {name} {reason}", file=sys.stderr)
    report = [sys.executable, "-m", "gradalign_jax.report", str(root), f"--output={root / 'report'}"]
    status = subprocess.run(report, check=False).returncode
    print(f"{sum(map(bool, (finished(root, job) for job in jobs)))} of {len(jobs)} runs finished, ", end="")
    print(f"{(time.monotonic() - started) / 60:.1f} min")
    return 1 if lost else status


def call(command: Sequence[str], folder: Path) -> str:
    """Execute a command, with its output in log.txt; return the failure, "" if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.txt").write_text(shlex.join(command) + "\n")
    with open(folder / "log.txt", "w") as log:
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return f"failed: {lines[-1] if lines else f'status {status}'} ({folder / 'log.txt'})" if status else ""


def write_slurm(jobs, commands: Mapping[str, list[str]], root: Path, folder: Path, options: str) -> str:
    """Write one job array per stage, and submit.sh, which chains them; return the command to submit.

    A stage starts when all jobs of the one before have ended, even if some failed: a run whose generator is missing
    exits with an error. Files of an earlier call stay, because waiting arrays will read them: a file's name contains a
    hash of its commands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    submit = [
        "#!/usr/bin/env bash",
        "# Submits each stage to start after the one before it.",
        "set -euo pipefail",
        "after=",
    ]
    left = [[job for job in stage if not finished(root, job)] for stage in plan.stages(list(jobs))]
    for i, stage in enumerate([stage for stage in left if stage], 1):
        text = "".join(shlex.join(commands[job.name]) + "\n" for job in stage)
        lines = folder / f"stage{i}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.txt"
        lines.write_text(text)
        script = lines.with_suffix(".sh")
        script.write_text(
            f"#!/usr/bin/env bash\n#SBATCH --job-name=gradalign-{i}\n#SBATCH --array=1-{len(stage)}\n"
            f"#SBATCH {options}\n"
            f"#SBATCH --output={shlex.quote(f'{folder.resolve()}/%A_%a.log')}\n#SBATCH --requeue\n"
            f'cd {shlex.quote(str(Path.cwd()))}\neval "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" '
            f'{shlex.quote(str(lines.resolve()))})"\n'
        )
        submit.append(
            f"after=$(sbatch --parsable ${{after:+--dependency=afterany:$after}} {shlex.quote(str(script.resolve()))})"
        )
    report = shlex.join([sys.executable, "-m", "gradalign_jax.report", str(root), f"--output={root / 'report'}"])
    submit.append(f"echo {shlex.quote(f'after the last job: {report}')}")
    (folder / "submit.sh").write_text("\n".join(submit) + "\n")
    typed = shlex.join(["bash", str(folder / "submit.sh")])
    return f"{sum(map(len, left))} runs in {sum(map(bool, left))} job arrays: {typed}"


# ---- hours


def read_speeds(path: Path) -> dict[str, float]:
    """Return hours by "dataset:task" from a JSON file.

    Raises:
      ValueError: if the file holds anything else.
    """
    try:
        return {kind: float(each) for kind, each in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'--speeds={path} must hold hours by run, like {{"cifar10:pgd": 1.5}}: {error}') from error


def hours(
    jobs: Sequence[Job], root: Path, speeds: Mapping[str, float], theirs: Mapping = paper.HOURS
) -> dict[str, tuple[float | None, str]]:
    """Return the hours of one run by "dataset:task", and their source: finished runs, --speeds, or `theirs`."""
    column = {"vrgan": "generator", "gan": "generator", "evaluate": "square"}
    found: dict[str, tuple[float | None, str]] = {}
    for kind in dict.fromkeys(f"{job.dataset}:{job.task}" for job in jobs):
        dataset, task = kind.split(":")
        mine = [job for job in jobs if (job.dataset, job.task) == (dataset, task)]
        seconds = [result["seconds"] for job in mine if (result := finished(root, job)) and result.get("seconds")]
        printed = theirs.get((dataset,), {}).get(column.get(task, task))
        if seconds:
            found[kind] = (sum(seconds) / len(seconds) / 3600, f"{len(seconds)} finished")
        elif kind in speeds:
            found[kind] = (speeds[kind], "given")
        else:
            found[kind] = (printed.value, "paper's GPUs") if printed else (None, "unknown")
    return found


def estimate(jobs: Sequence[Job], root: Path, speeds: Mapping[str, float], theirs: Mapping = paper.HOURS) -> str:
    """Return a table of runs and hours by kind, and the sum of the hours left."""
    lines = [f"{'run':22}{'runs':>6}{'left':>6}{'hours each':>12}{'hours left':>12}  source"]
    total, unknown = 0.0, 0
    for kind, (each, source) in hours(jobs, root, speeds, theirs).items():
        mine = [job for job in jobs if f"{job.dataset}:{job.task}" == kind]
        left = sum(finished(root, job) is None for job in mine)
        unknown += left if each is None else 0
        total += left * (each or 0.0)
        numbers = ("?", "?") if each is None else (f"{each:.3g}", f"{left * each:.3g}")
        lines.append(f"{kind:22}{len(mine):6}{left:6}{numbers[0]:>12}{numbers[1]:>12}  {source}")
    more = f", and {unknown} runs of unknown length" if unknown else ""
    return "\n".join([*lines, f"{len(jobs)} runs, {total:.4g} hours left, one device at a time{more}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
