"""The bench on an accelerator: our programs compiled in parallel, then timed one by one, then PyTorch's."""

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
from launch.bench import peers, rows
from launch.bench.peers import torch

TURN = 0.25  # seconds for which a side repeats its step before the clock is read
COMPILING = 0.7  # share of the budget; programs that are not compiled by then are left out
OURS = ("item", "ours ms", "TFLOP/s", "of bfloat16 peak", "of TF32 peak", "compile s")
PEERS = ("item", "ours ms", "authors' way", "lean TF32", "lean amp", "compiled attack")
PEERS += ("authors / ours", "lean / ours", "amp / ours", "compiled / ours")
NOTE = """
Milliseconds a step (a query, an iteration; of a projection for all pairs), medians. Shares are the operations that the
item needs over its time, of the card's measured peaks. "amp" is the lean way under PyTorch's bfloat16 autocast,
"compiled attack" the same with torch.compile for the attack's passes. Ratios are above 1 where ours is faster."""


class Budget(NamedTuple):
    """The seconds that a run may take."""

    seconds: float
    start: float

    def left(self) -> float:
        """Return the seconds that are left; negative once the budget is spent."""
        return self.start + self.seconds - time.monotonic()


class Compiled(NamedTuple):
    """A row, its compiled program, and the seconds of tracing and compiling."""

    row: rows.Row
    program: jax.stages.Compiled
    seconds: float


def run(arguments: argparse.Namespace, machine: dict, cores: int) -> None:
    """Print both tables, each row as it is measured, and keep the file of --output up to date."""
    budget = Budget(arguments.budget_seconds, time.monotonic())
    if arguments.rehearse:
        say("Rehearsal: the numbers below mean nothing.")
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
        say("\nOnly ours: PyTorch is left out, or cannot use this device.")
    else:
        measure_peers({each.row.name: each.row for each in ready}, report, keep, arguments.rounds, budget)
    say(f"\n{budget.seconds - budget.left():.0f} s in all")
    if unfinished:  # a compilation cannot be interrupted, and exit would wait for it
        sys.stdout.flush()
        os._exit(0)


def say(text: str) -> None:
    """Print and flush, so that nothing is lost if a run is cut off."""
    print(text, flush=True)


def peers_possible() -> bool:
    """Return whether PyTorch is installed and can use the device that JAX uses."""
    return torch is not None and (jax.default_backend() == "cpu" or peers.device().type == "cuda")


def start_compiling(arguments: argparse.Namespace, cores: int) -> dict[str, Future]:
    """Trace the programs one by one, and compile each in a thread: XLA releases Python's lock meanwhile."""
    sizes = rows.REHEARSAL if arguments.rehearse else rows.PAPER
    level = arguments.autotune_level
    options = {} if level is None else {"xla_gpu_autotune_level": level}
    if arguments.rehearse:
        options = {"xla_llvm_disable_expensive_passes": True}
    pool, pending = ThreadPoolExecutor(cores), {}

    def finish(row: rows.Row, lowered: jax.stages.Lowered, tracing: float) -> Compiled:
        start = time.perf_counter()
        program = lowered.compile(compiler_options=options or None)
        return Compiled(row, program, tracing + time.perf_counter() - start)

    for name in arguments.item or (rows.REHEARSED if arguments.rehearse else rows.ROWS):
        with platform.target("gpu") if arguments.rehearse else nullcontext():
            row, start = rows.build(name, sizes, arguments.attack_precision), time.perf_counter()
            lowered = row.program.lower()
        pending[name] = pool.submit(finish, row, lowered, time.perf_counter() - start)
    pool.shutdown(wait=False)
    return pending


def collect(pending: dict[str, Future], seconds: float, budget: Budget) -> tuple[list[Compiled], list[str]]:
    """Wait for the programs; return the compiled ones, and the names of those still compiling after `seconds`."""
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
        say(f"left out, not compiled in time: {', '.join(names.values())}")
    return [done[name] for name in pending if name in done], list(names.values())


def reason(error: BaseException) -> str:
    """Return the start of an error message, for a cell of the table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}".replace("|", "/")


def timed(side: Callable[[], Any], rounds: int, wait: Callable[[], None], budget: Budget) -> list[float]:
    """Return for each round the seconds of one call, averaged over a turn; the first two calls do not count."""

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
    """Return the device's TFLOP/s of products of random square matrices, in each precision."""
    values = np.random.default_rng(0).standard_normal((size, size), np.float32)

    def rate(name: str) -> float:
        def chain(a, b):
            return jax.lax.fori_loop(0, products, lambda _, x: x @ b, a)

        dtype = precision.factors(name)
        a, b = (jax.device_put(each.astype(dtype)) for each in (values, values / size**0.5))
        with precision.scope(name):
            compiled = jax.jit(chain).lower(a, b).compile()
        times = timed(lambda: jax.block_until_ready(compiled(a, b)), 5, lambda: None, Budget(60, time.monotonic()))
        return round(2e-12 * size**3 * products / statistics.median(times), 3)

    return {name: rate(name) for name in ("bfloat16", "tf32")}


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
        except Exception as error:  # too little memory, for example: the other rows are worth having
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
    """Return the report's entry for a row."""
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
    by_name: dict[str, rows.Row], report: dict, keep: Callable[[], None], rounds: int, budget: Budget
) -> None:
    """Time PyTorch's sides of the measured rows, and print their table."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if jax.default_backend() == "cpu":
        torch.set_num_threads(1)  # a rehearsal's sizes are too small for more
    say(f"\n{header(PEERS)}")
    for result in report["items"]:
        row = by_name[result["item"]]
        for column in row.columns:
            measure_peer(row, column, result, rounds, budget)
            keep()
        times, failed = result["milliseconds"], result["failed"]
        cells = [row.name, cell(times["ours"], ".2f")]
        cells += [failed.get(column) or cell(times.get(column), ".2f") for column in rows.COLUMNS]
        cells += [cell(result["ratio"].get(column), ".2f") for column in rows.COLUMNS]
        say(line(cells))


def measure_peer(row: rows.Row, column: str, result: dict, rounds: int, budget: Budget) -> None:
    """Time one of PyTorch's sides, and add its time or the reason for none to the row's result."""
    if budget.left() < 0:
        result["failed"][column] = "skipped: budget"
        return
    try:
        calls = timed(rows.peer_side(row, column), rounds, peers.wait, budget)
    except Exception as error:  # no compiler, too little memory: the cell says so
        result["failed"][column] = reason(error)
    else:
        times = [1e3 * seconds / row.parts for seconds in calls]
        result["rounds"][column], result["milliseconds"][column] = times, statistics.median(times)
        result["ratio"][column] = result["milliseconds"][column] / result["milliseconds"]["ours"]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def header(columns: tuple[str, ...]) -> str:
    """Return the first two lines of a table."""
    return f"{line(columns)}\n{'|---' * len(columns)}|"


def line(cells: Any) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(value: float | None, form: str) -> str:
    """Return a formatted number, or a dash for none."""
    return "-" if value is None else format(value, form)
