"""The bench on a CPU: the sides of an item run in interleaved rounds in one process."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from launch.bench.machine import seconds

SECONDS_PER_TURN = 0.4  # a side's turn in a round repeats its step for about this long
GAP = 0.1  # seconds between turns, until the other framework's threads have stopped spinning

COLUMNS = ("item", "ours", "authors' way", "lean PyTorch", "authors / ours", "lean / ours")
COLUMNS += ("compile s", "of matmul rate", "agreement")
HEADER = f"""
Milliseconds a step (of a projection: for one image and class; of a share or suite: for one image), medians. Ratios are
medians over rounds, above 1 where ours is faster.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|"""


class Item(NamedTuple):
    """One measurement.

    Attributes:
      name: the first cell of its row.
      sides: functions that run one step (`steps` of them for "ours") and wait for the result.
      compile_seconds: time to trace and compile ours; None: not measured.
      agreement: differences between our results and PyTorch's, or a function that returns them after the last round.
      flops: operations of one part of a step.
      parts: number of parts that a step's time is divided by; a part is one pair and step of a projection, or
        one image of a share.
      steps: steps of ours in one call.
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    compile_seconds: float | None
    agreement: str | Callable[[], str] | None
    flops: float | None
    parts: int = 1
    steps: int = 1


def calls_per_turn(run: Callable) -> int:
    """Warm a side up and return how many of its calls fill a turn."""
    duration = seconds(run, 1)
    if duration < 2:  # the first call, of PyTorch above all, can be slower than the next ones
        duration = seconds(run, 1)
    return max(1, min(50, int(SECONDS_PER_TURN / duration)))


def measure(item: Item, rounds: int, machine: dict, clock: Callable[[], float]) -> dict:
    """Run all sides of an item in interleaved rounds, after a warm-up, and return the report's entry."""
    calls = {side: calls_per_turn(run) for side, run in item.sides.items()}
    times: dict[str, list[float]] = {side: [] for side in item.sides}
    for turn in range(rounds):
        order = list(item.sides)
        for side in order[turn % len(order) :] + order[: turn % len(order)]:
            time.sleep(GAP)
            if calls[side] > 1:
                item.sides[side]()  # untimed: refills the caches and wakes this side's threads
            parts = item.parts * (item.steps if side == "ours" else 1)
            times[side].append(seconds(item.sides[side], calls[side], clock) / parts)
    ours = statistics.median(times["ours"])
    ratios = {
        side: statistics.median(theirs / mine for theirs, mine in zip(times[side], times["ours"], strict=True))
        for side in times
        if side != "ours"
    }
    rate = item.flops / ours / 1e9 / machine["matmul_gflops"]["jax"] if item.flops else None
    return {
        "item": item.name,
        "milliseconds": {side: 1e3 * statistics.median(values) for side, values in times.items()},
        "rounds": {side: [1e3 * value for value in values] for side, values in times.items()},
        "ratio": ratios,
        "compile_seconds": item.compile_seconds,
        "share_of_matmul_rate": rate,
        "agreement": item.agreement() if callable(item.agreement) else item.agreement,
    }


def table_row(result: dict) -> str:
    """Return an item's row of the table."""
    milliseconds, ratio = result["milliseconds"], result["ratio"]

    def cell(value, form):
        return "-" if value is None else format(value, form)

    cells = [result["item"]]
    cells += [cell(milliseconds.get(side), ".1f") for side in ("ours", "authors", "lean")]
    cells += [cell(ratio.get(side), ".2f") for side in ("authors", "lean")]
    cells += [cell(result["compile_seconds"], ".1f"), cell(result["share_of_matmul_rate"], ".0%")]
    return "| " + " | ".join([*cells, result["agreement"] or "-"]) + " |"
