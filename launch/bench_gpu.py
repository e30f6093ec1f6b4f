"""bench.py's tables on an accelerator: our programs compiled side by side, then timed one by one, then PyTorch's."""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gradalign_jax.ops import platform, precision
from launch import bench_peers, bench_rows
from launch.bench_peers import torch

TURN = 0.25  # seconds that a side repeats its step for before the clock is read
COMPILING = 0.7  # of the budget: programs that take longer are left out
OURS = ("item", "ours ms", "TFLOP/s", "of bfloat16 peak", "of TF32 peak", "compile s")
PEERS = ("item", "ours ms", "authors' way", "lean TF32", "lean amp", "compiled attack")
PEERS += ("authors / ours", "lean / ours", "amp / ours", "compiled / ours")
NOTE = """
ms per step (per query, per iteration; of a projection for all pairs), medians. Shares are the operations that the item
needs over its time, of the card's measured peaks. "amp" is the lean way under PyTorch's autocast in bfloat16, "compiled
attack" the same with torch.compile for the attack's passes. Ratios are above 1 where ours is faster."""


class Budget(NamedTuple):
    """What is left of the seconds that a run may take."""

    seconds: float
    start: float

    def left(self) -> float:
        """Return the seconds that are left; below 0 where they are spent."""
        return self.start + self.seconds - time.monotonic()


class Compiled(NamedTuple):
    """A row whose program is ready, and how long that took."""

    row: bench_rows.Row
    program: jax.stages.Compiled
    seconds: float


def run(arguments: argparse.Namespace, machine: dict, cores: int) -> None:
    """Print both tables, each row as it is measured, and keep the file of --output up to date."""
    budget = Budget(arguments.budget_seconds, time.monotonic())
    if arguments.rehearse:
        say("A rehearsal: no number below means anything.")
    pending = start_compiling(arguments, cores)
    ready, unfinished = collect(pending, COMPILING * budget.seconds, budget)
    machine["peaks_tflops"] = peaks(256 if arguments.rehearse else 8192)
    say(json.dumps(machine))
    report = {"machine": machine, "rounds": arguments.rounds, "items": []}

    def keep() -> None:
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")

    measure_ours(ready, report, keep, arguments.rounds, budget)
    if arguments.no_peers or not peers_possible():
        say("\nOurs alone: PyTorch is left out, or cannot use this device.")
    else:
        measure_peers({each.row.name: each.row for each in ready}, report, keep, arguments.rounds, budget)
    say(f"\n{budget.seconds - budget.left():.0f} s in all")
    if unfinished:  # a compilation cannot be interrupted, and would be waited for
        sys.stdout.flush()
        os._exit(0)


def say(text: str) -> None:
    """Print at once, so that nothing is lost where a run is cut off."""
    print(text, flush=True)


def peers_possible() -> bool:
    """Whether PyTorch is there and can use the device that JAX uses."""
    return torch is not None and (jax.default_backend() == "cpu" or bench_peers.device().type == "cuda")


def start_compiling(arguments: argparse.Namespace, cores: int) -> dict[str, Future]:
    """Trace the programs one by one and hand each to a thread that compiles it: XLA leaves Python free meanwhile."""
    sizes = bench_rows.REHEARSAL if arguments.rehearse else bench_rows.PAPER
    level = arguments.autotune_level
    options = {} if level is None else {"xla_gpu_autotune_level": level}
    if arguments.rehearse:
        options = {"xla_llvm_disable_expensive_passes": True}
    pool, pending = ThreadPoolExecutor(cores), {}

    def finish(row: bench_rows.Row, lowered: jax.stages.Lowered, tracing: float) -> Compiled:
        start = time.perf_counter()
        program = lowered.compile(compiler_options=options or None)
        return Compiled(row, program, tracing + time.perf_counter() - start)

    for name in arguments.item or (bench_rows.REHEARSED if arguments.rehearse else bench_rows.ROWS):
        with platform.target("gpu") if arguments.rehearse else nullcontext():
            row, start = bench_rows.build(name, sizes, arguments.attack_precision), time.perf_counter()
            lowered = row.program.lower()
        pending[name] = pool.submit(finish, row, lowered, time.perf_counter() - start)
    pool.shutdown(wait=False)
    return pending


def collect(pending: dict[str, Future], seconds: float, budget: Budget) -> tuple[list[Compiled], list[str]]:
    """Wait for the programs; return those that are ready by then, and the names of those still compiling."""
    names = {future: name for name, future in pending.items()}
    done: dict[str, Compiled] = {}
    try:
        for future in as_completed(names, timeout=max(1, seconds - (budget.seconds - budget.left()))):
            name = names.pop(future)
            if error := future.exception():
                say(f"{name} does not compile: {reason(error)}")
            else:
                done[name] = future.result()
                say(f"compiled {name} in {done[name].seconds:.1f} s")
    except TimeoutError:
        for future in names:
            future.cancel()
        say(f"not compiled in time, left out: {', '.join(names.values())}")
    return [done[name] for name in pending if name in done], list(names.values())


def reason(error: BaseException) -> str:
    """Return the start of an error, for a table's cell."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}".replace("|", "/")


def timed(side: Callable[[], Any], rounds: int, wait: Callable[[], None], budget: Budget) -> list[float]:
    """Return the seconds of one call, averaged over a turn, for each round; the first two calls are not counted."""

    def turn(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            side()
        wait()
        return (time.perf_counter() - start) / calls

    turn(1)
    calls = max(1, min(200, int(TURN / turn(1))))
    times: list[float] = []
    while len(times) < rounds and (not times or budget.left() > 0):
        times.append(turn(calls))
    return times


def peaks(size: int, products: int = 10) -> dict[str, float]:
    """TFLOP/s of products of random square matrices on the device, in each precision."""
    values = np.random.default_rng(0).standard_normal((size, size), np.float32)
    rates = {}
    for name in ("bfloat16", "tf32"):

        def chain(a, b):
            return jax.lax.fori_loop(0, products, lambda _, x: x @ b, a)

        dtype = precision.factors(name)
        a, b = (jax.device_put(each.astype(dtype)) for each in (values, values / size**0.5))
        with precision.scope(name):
            compiled = jax.jit(chain).lower(a, b).compile()
        side = lambda: jax.block_until_ready(compiled(a, b))  # noqa: E731
        times = timed(side, 5, lambda: None, Budget(60, time.monotonic()))
        rates[name] = round(2e-12 * size**3 * products / statistics.median(times), 3)
    return rates


def measure_ours(ready: list[Compiled], report: dict, keep: Callable[[], None], rounds: int, budget: Budget) -> None:
    """Time our programs, print their table, and add their results to the report."""
    say(f"{NOTE}\n\n{header(OURS)}")
    for each in ready:
        row = each.row
        if budget.left() < 0:
            say(f"| {row.name} | skipped: the budget is spent |")
            continue
        try:
            calls = timed(row.program.start(each.program), rounds, lambda: None, budget)
        except Exception as error:  # too little memory, say: the other rows are still worth having
            say(f"| {row.name} | {reason(error)} |")
            continue
        result = result_of(each, [seconds / (row.steps * row.parts) for seconds in calls], report["machine"])
        report["items"].append(result)
        keep()
        rate, shares = result["tflops"], result["share_of_peak"]
        cells = [row.name, cell(result["milliseconds"]["ours"], ".2f"), cell(rate, ".1f")]
        cells += [cell(shares.get(name), ".0%") for name in ("bfloat16", "tf32")]
        say(line([*cells, cell(each.seconds, ".1f")]))
        gc.collect()


def result_of(each: Compiled, times: list[float], machine: dict) -> dict:
    """Return the report's entry of a row of ours."""
    seconds, flops = statistics.median(times), each.row.flops
    rate = flops / seconds / 1e12 if flops else None
    shares = {name: rate / peak for name, peak in machine["peaks_tflops"].items()} if flops else {}
    return {
        "item": each.row.name,
        "milliseconds": {"ours": 1e3 * seconds},
        "rounds": {"ours": [1e3 * value for value in times]},
        "ratio": {},
        "failed": {},
        "compile_seconds": each.seconds,
        "tflops": rate,
        "share_of_peak": shares,
    }


def measure_peers(
    rows: dict[str, bench_rows.Row], report: dict, keep: Callable[[], None], rounds: int, budget: Budget
) -> None:
    """Time PyTorch's sides beside what was measured of ours, and print their table."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if jax.default_backend() == "cpu":
        torch.set_num_threads(1)  # a rehearsal's sizes are too small for more
    say(f"\n{header(PEERS)}")
    for result in report["items"]:
        row = rows[result["item"]]
        for column in row.columns:
            measure_peer(row, column, result, rounds, budget)
            keep()
        times, failed = result["milliseconds"], result["failed"]
        cells = [row.name, cell(times["ours"], ".2f")]
        cells += [failed.get(column) or cell(times.get(column), ".2f") for column in bench_rows.COLUMNS]
        cells += [cell(result["ratio"].get(column), ".2f") for column in bench_rows.COLUMNS]
        say(line(cells))


def measure_peer(row: bench_rows.Row, column: str, result: dict, rounds: int, budget: Budget) -> None:
    """Time one of PyTorch's sides and add it to the row's result, or why it has no time."""
    if budget.left() < 0:
        result["failed"][column] = "skipped: budget"
        return
    try:
        calls = timed(bench_rows.peer_side(row, column), rounds, bench_peers.wait, budget)
    except Exception as error:  # a compiler that is missing, too little memory: the cell says so
        result["failed"][column] = reason(error)
    else:
        times = [1e3 * seconds / row.parts for seconds in calls]
        result["rounds"][column], result["milliseconds"][column] = times, statistics.median(times)
        result["ratio"][column] = result["milliseconds"][column] / result["milliseconds"]["ours"]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def header(columns: tuple[str, ...]) -> str:
    """Return a table's first two lines."""
    return f"{line(columns)}\n{'|---' * len(columns)}|"


def line(cells: Any) -> str:
    """Return a table's line."""
    return f"| {' | '.join(cells)} |"


def cell(value: float | None, form: str) -> str:
    """Return a number, or a dash for none."""
    return "-" if value is None else format(value, form)
