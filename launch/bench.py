"""Times our training steps against PyTorch's: `python launch/bench.py [--item=spheres_plain ...]`.

Two PyTorch columns: "authors" does the work of the authors' training loop, "lean" only what the method needs
(launch/torch_peer). All sides run in this process, with equal weights, in interleaved rounds; a ratio is
the median over rounds of theirs / ours, above 1 where ours is faster. Our steps are timed as training runs them, many
in one program; compile time is apart. Without PyTorch, ours is timed alone.

On a GPU the items are the paper's sizes, programs are compiled side by side first, and both sides are timed on the same
card (launch/bench_gpu.py); `--rehearse` does the same at tiny sizes on a CPU, to see that every line runs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs uninstalled

from gradalign_jax.ops import precision
from launch import bench_gan, bench_gpu, bench_items, bench_rows, bench_vrgan
from launch.bench_peers import torch

SECONDS_PER_TURN = 0.4  # a side's turn in a round repeats its step for about so long
ITEMS = bench_items.ITEMS + bench_vrgan.ITEMS + bench_gan.ITEMS
GAP = 0.1  # between turns, until the other framework's threads have stopped spinning


def main() -> None:
    # PyTorch needs memory on the same card; JAX would take three quarters of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    arguments = parse_arguments()
    if arguments.table:
        bench_gpu.run(arguments, describe_machine(), cores())
        return
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if torch is None:
        print("PyTorch is not installed: ours alone.")
    else:
        torch.set_num_threads(cores())
        torch.manual_seed(0)
    machine = describe_machine() | {"matmul_gflops": matmul_rates(clock)}
    report = {"machine": machine, "rounds": arguments.rounds, "clock": clock.__name__, "items": []}
    print(json.dumps(machine), flush=True)
    print(HEADER, flush=True)
    for name in arguments.item or ITEMS:
        result = measure(build(name, arguments), arguments.rounds, machine, clock)
        report["items"].append(result)
        print(table_row(result), flush=True)
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")


def build(name: str, arguments: argparse.Namespace) -> bench_items.Item:
    """One of ITEMS."""
    if name in bench_gan.ITEMS:
        return bench_gan.build(arguments.gan_width)
    if name in bench_vrgan.ITEMS:
        return bench_vrgan.build(name)
    steps = arguments.cifar_attack_steps if name == "cifar_pgd" else 40
    return bench_items.build(name, steps, arguments.attack_precision)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = ITEMS + [name for name in bench_rows.ROWS if name not in ITEMS]
    parser.add_argument("--item", action="append", choices=known, help="repeatable; default: all of a CPU's or GPU's")
    parser.add_argument("--rounds", type=int, help="rounds per item (7, interleaved; on a GPU 3)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 2 attack steps for CIFAR")
    parser.add_argument("--cifar-attack-steps", type=int, default=40, help="PGD steps of the cifar_pgd item")
    parser.add_argument(
        "--attack-precision",
        choices=precision.NAMES,
        default="bfloat16",
        help="of our attack's products in PGD items",
    )
    parser.add_argument("--gan-width", type=int, default=256, help="channels of the gan_iteration item (paper: 256)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, not wall time: for a busy machine, under `taskset -c 0` (one thread "
        "each: PyTorch's threads spin while they wait for one another, which counts as work)",
    )
    parser.add_argument("--output", help="also write the results to this JSON file")
    add_table_arguments(parser.add_argument_group("on a GPU"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.cifar_attack_steps = 3, 2
    backend = jax.default_backend()
    if arguments.rehearse and backend != "cpu":
        parser.error("--rehearse is for a CPU")
    arguments.table = arguments.rehearse or backend == "gpu"
    wrong = set(arguments.item or ()) - set(bench_rows.ROWS if arguments.table else ITEMS)
    if wrong:
        parser.error(f"no items of this mode: {', '.join(sorted(wrong))}")
    arguments.rounds = arguments.rounds or (1 if arguments.rehearse else 3 if arguments.table else 7)
    return arguments


def add_table_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rehearse", action="store_true", help="the GPU's tables at tiny sizes on a CPU")
    group.add_argument("--budget-seconds", type=float, default=480, help="after so long whatever remains is skipped")
    group.add_argument("--autotune-level", type=int, help="xla_gpu_autotune_level of our programs")
    group.add_argument("--no-peers", action="store_true", help="ours alone")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe_machine() -> dict:
    """Processor, device and versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def matmul_rates(clock: Callable[[], float], size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a float32 matrix product of this size, the best of several, in each framework."""
    ours = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    sides: dict[str, Callable] = {"jax": lambda: product(ours, ours).block_until_ready()}
    if torch is not None:
        theirs = torch.ones(size, size)
        sides["torch"] = lambda: theirs @ theirs
    rates = {}
    for name, run in sides.items():
        run()
        rates[name] = round(2e-9 * size**3 / min(seconds(run, 1, clock) for _ in range(8)), 1)
    return rates


def seconds(run: Callable, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, averaged over `calls`."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def calls_per_turn(run: Callable) -> int:
    """Warms a side up, and returns how many of its steps fill a turn."""
    duration = seconds(run, 1)
    if duration < 2:  # the first call, of PyTorch above all, can be slower than those that follow
        duration = seconds(run, 1)
    return max(1, min(50, int(SECONDS_PER_TURN / duration)))


def measure(item: bench_items.Item, rounds: int, machine: dict, clock: Callable[[], float]) -> dict:
    """Runs all sides of an item in interleaved rounds; every side is warmed up first."""
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
        "agreement": item.agreement,
    }


COLUMNS = ("item", "ours", "authors' way", "lean PyTorch", "authors / ours", "lean / ours")
COLUMNS += ("compile s", "of matmul rate", "agreement")
HEADER = f"""
ms per step (of a projection: for one image and class), medians; ratios are medians over rounds, above 1 where ours is
faster
| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|"""


def table_row(result: dict) -> str:
    milliseconds, ratio = result["milliseconds"], result["ratio"]

    def cell(value, form):
        return "-" if value is None else format(value, form)

    cells = [result["item"]]
    cells += [cell(milliseconds.get(side), ".1f") for side in ("ours", "authors", "lean")]
    cells += [cell(ratio.get(side), ".2f") for side in ("authors", "lean")]
    cells += [cell(result["compile_seconds"], ".1f"), cell(result["share_of_matmul_rate"], ".0%")]
    return "| " + " | ".join([*cells, result["agreement"] or "-"]) + " |"


if __name__ == "__main__":
    main()
