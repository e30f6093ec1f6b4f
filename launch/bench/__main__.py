"""Speed of our steps against PyTorch's: `python launch/bench [--item=spheres_plain ...]`.

Two PyTorch columns: "authors" does the work of the authors' training loop, "lean" only what the method needs
(launch/bench/torch_peer). All sides run in this process, with equal weights, in interleaved rounds; a ratio is the
median over rounds of theirs / ours, above 1 where ours is faster. Our steps are timed as training runs them, many in
one program, without compile time. If PyTorch is not installed, only ours are timed.

On a GPU the items have the paper's sizes; the programs are compiled in parallel, then both sides are timed on the same
card. --rehearse does the same at tiny sizes on a CPU, to check that every line runs.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout, too

from gradalign_jax.ops import precision
from launch.bench import (
    accelerator,
    classifiers,
    gan,
    interleaved,
    machine,
    nearest,
    projection,
    rows,
    suites,
    tangent,
    vrgan,
)
from launch.bench.peers import torch

ITEMS = [*classifiers.ITEMS, *projection.ITEMS, *tangent.ITEMS, *vrgan.ITEMS, *gan.ITEMS, *nearest.ITEMS]


def main() -> None:
    """Run the bench for this backend."""
    # PyTorch needs memory on the same card; JAX would take three quarters of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    arguments = parse_arguments()
    if arguments.table:
        accelerator.run(arguments, machine.describe(), machine.cores())
    else:
        run_interleaved(arguments)


def run_interleaved(arguments: argparse.Namespace) -> None:
    """Print the CPU's table, each row as it is measured, and keep the file of --output up to date."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if torch is None:
        print("PyTorch is not installed: only ours are timed.")
    else:
        torch.set_num_threads(machine.cores())
        torch.manual_seed(0)
    described = machine.describe() | {"matmul_gflops": machine.matmul_rates(clock)}
    report = {"machine": described, "rounds": arguments.rounds, "clock": clock.__name__, "items": []}
    print(json.dumps(described), flush=True)
    print(interleaved.HEADER, flush=True)
    for name in arguments.item or ITEMS:
        result = interleaved.measure(build(name, arguments), arguments.rounds, described, clock)
        report["items"].append(result)
        print(interleaved.table_row(result), flush=True)
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")


def build(name: str, arguments: argparse.Namespace) -> interleaved.Item:
    """Build one of ITEMS."""
    if name in suites.ITEMS:
        return suites.build(name, Path(arguments.lenet), arguments.suite_images, arguments.suite_queries)
    if name in gan.ITEMS:
        return gan.build(arguments.gan_width)
    if name in nearest.ITEMS:
        return nearest.build(name)
    if name in vrgan.ITEMS:
        return vrgan.build(name)
    if name in projection.ITEMS:
        return projection.build(name)
    if name in tangent.ITEMS:
        return tangent.build()
    steps = arguments.cifar_attack_steps if name == "cifar_pgd" else 40
    return classifiers.build(name, steps, arguments.attack_precision)


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line; `table` is whether the accelerator's tables are made."""
    parser = argparse.ArgumentParser(
        prog="python launch/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ITEMS, *suites.ITEMS] + [name for name in rows.ROWS if name not in ITEMS]
    parser.add_argument(
        "--item",
        action="append",
        choices=names,
        metavar="ITEM",
        help=f"repeatable; default: all. On a CPU: {', '.join(ITEMS)}; with --lenet {' and '.join(suites.ITEMS)}. On a "
        f"GPU: {', '.join(rows.ROWS)}",
    )
    parser.add_argument("--rounds", type=int, help="rounds per item (7 interleaved ones; on a GPU 3)")
    parser.add_argument("--output", metavar="JSON", help="also write the results to this file")
    parser.add_argument(
        "--attack-precision",
        choices=precision.NAMES,
        default="bfloat16",
        help="precision of our attack in the PGD items (bfloat16)",
    )
    add_interleaved_arguments(parser.add_argument_group("on a CPU"))
    add_table_arguments(parser.add_argument_group("on a GPU"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.cifar_attack_steps = 3, 2
    backend = jax.default_backend()
    if arguments.rehearse and backend != "cpu":
        parser.error("--rehearse runs on a CPU only")
    arguments.table = arguments.rehearse or backend == "gpu"
    wrong = set(arguments.item or ()) - set(rows.ROWS if arguments.table else (*ITEMS, *suites.ITEMS))
    if wrong:
        parser.error(f"--item={sorted(wrong)[0]} is not available in this mode")
    if not arguments.lenet and set(arguments.item or ()) & set(suites.ITEMS):
        parser.error("the suites need --lenet=advertorch-0.2.3.tar.gz (launch/lenet.py)")
    arguments.rounds = arguments.rounds or (1 if arguments.rehearse else 3 if arguments.table else 7)
    return arguments


def add_interleaved_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options of the CPU's table."""
    group.add_argument("--quick", action="store_true", help="3 rounds, 2 attack steps for CIFAR")
    group.add_argument("--cifar-attack-steps", type=int, default=40, help="PGD steps of cifar_pgd (40)")
    group.add_argument("--gan-width", type=int, default=256, help="channels of gan_iteration (256, the paper's)")
    group.add_argument("--lenet", metavar="TAR", help="advertorch-0.2.3.tar.gz, for the suites (launch/lenet.py)")
    group.add_argument("--suite-images", type=int, default=50, help="MNIST test images of the suites (50)")
    group.add_argument("--suite-queries", type=int, default=5000, help="queries of AutoAttack's Square Attack (5000)")
    group.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time instead of wall time. For a busy machine; run under `taskset -c 0`, because "
        "PyTorch's threads spin while they wait for one another, which counts as work",
    )


def add_table_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options of the accelerator's tables."""
    group.add_argument("--rehearse", action="store_true", help="make the GPU's tables at tiny sizes on a CPU")
    group.add_argument("--budget-seconds", type=float, default=480, help="skip what has not started by then (480)")
    group.add_argument("--autotune-level", type=int, help="xla_gpu_autotune_level of our programs")
    group.add_argument("--no-peers", action="store_true", help="time only ours")


if __name__ == "__main__":
    main()
