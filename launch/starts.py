"""Seconds from the command to a run's first training step, by part: `python launch/starts.py --config=CONFIG...`.

    python launch/starts.py --config=configs/spheres.py:pgd --config=configs/mnist.py:pgd

Each config, of a task that trains a classifier, is started twice as by `python -m gradalign_jax.main`, in a new process
each time: with an empty cache of compiled programs and with the cache that the first start filled. Columns: imports,
data, the initial state, tracing and lowering, compiling (or reading from the cache) and one step of training; then
their sum, the time on the clock, which is shorter where cores work together and longer where they are busy. All but the
last are processor time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("imports", "data", "state", "trace", "compile or read", "step")


def main() -> None:
    """Print a row for each config and start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True, help="FILE:TASK, repeatable")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options, keys = parser.parse_known_args()  # keys: --config.NAME=VALUE
    if options.child:
        print(json.dumps(start(options.config[0], keys, options.child)))
        return
    print(f"| config | cache | {' | '.join(PARTS)} | sum | clock |\n|{'---|' * (len(PARTS) + 4)}")
    for config in options.config:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
            for cache in ("empty", "filled"):
                command = [sys.executable, __file__, f"--config={config}", f"--child={time.time()}", *keys]
                found = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
                parts = [*(found[part] for part in PARTS), sum(found[part] for part in PARTS), found["clock"]]
                row = " | ".join(f"{seconds:.1f}" for seconds in parts)
                print(f"| {config.removeprefix('configs/')} | {cache} | {row} |", flush=True)


def start(config: str, keys: list[str], began: float) -> dict[str, float]:
    """Start a run and make one step; return the seconds of each part.

    Args:
      config: FILE:TASK.
      keys: further flags of `gradalign_jax.main`.
      began: time of the command.
    """
    sys.path.insert(0, str(ROOT))
    marks = [0.0]

    def mark() -> float:
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    from gradalign_jax import main as command

    keys = [f"--config={config}", "--config.train.log_every=1", *keys]  # a program of one step
    sys.argv[1:] = keys  # where ml_collections looks for changed keys
    command._parse(sys.argv)
    command._set_up_jax()
    import jax

    from gradalign_jax import parallel
    from gradalign_jax.storage.workdir import Workdir
    from gradalign_jax.tasks import classifier

    times = {"lowered": 0.0, "compiling": 0.0}

    def listen(event: str, _: float, **__: object) -> None:
        if event.endswith("jaxpr_to_mlir_module_duration"):
            times["lowered"] = time.process_time()
        if event.endswith("backend_compile_duration"):  # reading from the cache, too
            times["compiling"] += time.process_time() - times["lowered"]

    jax.monitoring.register_event_duration_secs_listener(listen)
    seconds = {"imports": mark()}
    with tempfile.TemporaryDirectory() as folder:
        run = classifier.ClassifierRun(command._CONFIG.value, Workdir(folder, command._CONFIG.value.to_dict()))
        seconds["data"] = mark()
        state = parallel.replicate(run.fresh_state(), run.devices)
        seconds["state"] = mark()
        times["compiling"] = 0.0
        call = run.chunk(1)
        state = jax.block_until_ready(call(state)[0])
        first, seconds["clock"], seconds["compile or read"] = mark(), time.time() - began, times["compiling"]
        jax.block_until_ready(call(state))
        seconds["step"] = mark()
        run.workdir.close()
    return seconds | {"trace": first - seconds["compile or read"] - seconds["step"]}


if __name__ == "__main__":
    main()
