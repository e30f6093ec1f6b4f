"""Cost and precision of the programs that a GPU or TPU runs, on a machine without either.

    python launch/compile_report.py --stablehlo                          # needs nothing but the package
    pip install -e ".[cuda]" && python launch/compile_report.py --target=h100 cifar_pgd
    pip install -e ".[tpu]" && python launch/compile_report.py --target=v5e --devices=4 --output=v5e cifar_pgd

--stablehlo lowers each program for "cuda" and "tpu", prints its products by type and precision, and exits with 1 if one
breaks the precision policy (policy.py). --target compiles the programs, at the paper's sizes, for a device that is not
present, and prints the cost of each; --output=STEM also writes STEM.json and STEM.md. Nothing is autotuned without the
device, so memory and bytes are close to those of a run, and times are lower bounds: the roofline is the larger of
operations over peak rate and bytes over bandwidth. The largest batch is extrapolated to 90 % of the device's memory
from this batch and four times as many, so each program is compiled twice.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# libtpu otherwise asks for the properties of the machine it runs on, and for sole use of it.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax.ops import platform
from launch.compiled import hlo, policy, programs, targets

COLUMNS = ("program", "batch", "compile s", "arguments GB", "temporary GB", "GFLOP a step", "of analytic", "products")
COLUMNS += ("GB a step", "kernels a step", "collectives a step", "roofline ms a step", "largest batch that fits")


def main() -> int:
    """Run the report and return the exit status."""
    parser, arguments = parse_arguments()
    # A run's setting: reported values have float32 products; searches and training choose their own precision.
    jax.config.update("jax_default_matmul_precision", "highest")
    names = arguments.programs or list(programs.PROGRAMS)
    if arguments.stablehlo:
        return stablehlo(names)
    target = targets.TARGETS[arguments.target]
    try:
        on = target.devices(arguments.devices)
    except ValueError as error:
        parser.error(str(error))
    except (RuntimeError, NotImplementedError) as error:
        extra = "cuda" if target.kind == "gpu" else "tpu"
        parser.error(f'--target={arguments.target}: {error}; install it with pip install -e ".[{extra}]"')
    options = {"optimization_level": arguments.tpu_level} if target.kind == "tpu" else {}
    described = {"target": arguments.target, "devices": len(on), "options": options, "versions": versions()}
    return compiled(names, target, on, described, arguments.output)


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python launch/compile_report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"{', '.join(programs.PROGRAMS)}; default: all")
    parser.add_argument("--stablehlo", action="store_true", help="check products against the precision policy")
    parser.add_argument("--target", choices=targets.TARGETS, help="device to compile for")
    parser.add_argument("--devices", type=int, default=1, help="number of devices (1); must divide the batch")
    parser.add_argument(
        "--tpu-level",
        choices=("O0", "O1", "O2", "O3"),
        default="O0",
        help="optimization level for a TPU: O0 is enough for types, operations and memory; O2, the level of a run, "
        "takes minutes a program and adds its bytes and libtpu's estimate of cycles (in STEM.json)",
    )
    parser.add_argument("--output", metavar="STEM", help="also write STEM.json and STEM.md")
    arguments = parser.parse_args()
    for name in arguments.programs:
        if name not in programs.PROGRAMS:
            parser.error(f"{name!r} is not a program; choose from {', '.join(programs.PROGRAMS)}")
    if arguments.stablehlo == bool(arguments.target):
        parser.error("give either --stablehlo or --target")
    if arguments.devices < 1:
        parser.error(f"--devices={arguments.devices}: give 1 or more")
    return parser, arguments


def stablehlo(names: list[str]) -> int:
    """Print the products of each program on both platforms; return 1 if a program breaks the policy."""
    broken = 0
    for name in names:
        for kind, lowering in (("gpu", "cuda"), ("tpu", "tpu")):
            with platform.target(kind):
                program = programs.PROGRAMS[name](jax.local_devices()[:1])
                lowered = program.traced.lower(lowering_platforms=(lowering,))
            found = policy.products(lowered.compiler_ir("stablehlo"))
            lines = policy.violations(name, found)
            broken += bool(lines)
            print(f"\n{name}, {lowering}: {'; '.join(lines) or 'follows the policy'}")
            print("| loop depth | product | types | precision | count |\n|---|---|---|---|---|")
            print("\n".join(policy.table(found)), flush=True)
    return 1 if broken else 0


def compiled(
    names: list[str], target: targets.Target, on: list[Any], described: dict[str, Any], output: str | None
) -> int:
    """Compile the programs for devices and print a row for each; return 1 if one does not compile."""
    rows, failed = [], False
    print(header(), flush=True)
    for name in names:
        try:
            rows.append(measure(name, target, on, described["options"]))
        except Exception as error:  # any compiler error, such as too little memory: the other rows are worth having
            failed = True
            rows.append({"program": name, "error": str(error).splitlines()[0]})
        print(table_row(rows[-1]), flush=True)
        if output:
            write(output, described | {"programs": rows})
    return int(failed)


def measure(name: str, target: targets.Target, on: list[Any], options: dict[str, str]) -> dict[str, Any]:
    """Compile one program and return its cost: operations, bytes and counts of one device and step."""
    start = time.perf_counter()
    program, executable = build(name, target, on, options)
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    cost = hlo.cost(executable.as_text(), program.unknown)
    steps = program.steps
    flops = {kind: count / steps for kind, count in cost.flops.items()}
    computing = sum(count / target.peak(kind) for kind, count in flops.items())
    return {
        "program": name,
        "batch": program.batch,
        "key": program.key,
        "steps": steps,
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": flops,
        "analytic_flops": 2 * program.macs * program.batch or None,
        "bytes": cost.traffic / steps,
        "kernels": cost.kernels / steps,
        "estimated_cycles": cost.cycles / steps,
        "collectives": {kind: n / steps for kind, n in cost.collectives.items()},
        "roofline_seconds": max(computing, cost.traffic / steps / target.bandwidth),
        "largest_batch": largest_batch(name, target, on, options, program, memory),
    }


def build(
    name: str, target: targets.Target, on: list[Any], options: dict[str, str], **changes: Any
) -> tuple[programs.Program, jax.stages.Compiled]:
    """Trace and compile one program, with changes of its config."""
    with platform.target(target.kind):
        program = programs.PROGRAMS[name](on, **changes)
        return program, program.traced.lower().compile(options or None)


def largest_batch(
    name: str, target: targets.Target, on: list[Any], options: dict[str, str], program: programs.Program, memory: Any
) -> int:
    """Return the largest value of the program's batch key that fits, extrapolated from its batch and four times that.

    If four times as many do not compile, temporary memory is taken to be proportional to the batch. A smaller factor
    would be too noisy for a TPU, which pads batches.
    """
    shares = len(on) if program.key == "train.batch_size" else 1  # that key counts the images of all devices
    try:
        more, executable = build(name, target, on, options, **{program.key: 4 * program.batch * shares})
        growth = executable.memory_analysis().temp_size_in_bytes - memory.temp_size_in_bytes
        each = growth / (more.batch - program.batch)
    except jax.errors.JaxRuntimeError:
        each = memory.temp_size_in_bytes / program.batch
    left = 0.9 * target.memory - memory.argument_size_in_bytes - memory.temp_size_in_bytes
    return shares * int(program.batch + left / max(each, 1))


def header() -> str:
    """Return the first two lines of the table."""
    return f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def table_row(cost: dict[str, Any]) -> str:
    """Return a program's row of the table."""
    if "error" in cost:
        return f"| {cost['program']} | {cost['error']} |" + " |" * (len(COLUMNS) - 2)
    total = sum(cost["flops"].values())
    by_type: Counter = Counter()
    for kind, count in cost["flops"].items():
        by_type[kind.partition(" ")[2].replace(" x ", " × ")] += count / total
    cells = [cost["program"], cost["batch"], f"{cost['compile_seconds']:.0f}"]
    cells += [f"{cost[key] / 1e9:.2f}" for key in ("argument_bytes", "temporary_bytes")]
    cells += [f"{total / 1e9:,.1f}", f"{total / cost['analytic_flops']:.3f}" if cost["analytic_flops"] else "-"]
    cells.append(", ".join(f"{kind} {share:.0%}" for kind, share in by_type.most_common() if share > 0.005))
    cells += [f"{cost['bytes'] / 1e9:.2f}", f"{cost['kernels']:.0f}"]
    cells.append(", ".join(f"{kind} {count:.3g}" for kind, count in cost["collectives"].items()) or "-")
    cells += [f"{1e3 * cost['roofline_seconds']:.2f}", f"{cost['key']}={cost['largest_batch']}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def versions() -> dict[str, str]:
    """Return the versions of JAX and its compilers."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(stem: str, report: dict[str, Any]) -> None:
    """Write the report to STEM.json and STEM.md."""
    Path(f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    parts = [f"{report['target']} × {report['devices']}", *report["options"].values()]
    parts += [f"{name} {version}" for name, version in report["versions"].items()]
    lines = [", ".join(parts), "", header(), *map(table_row, report["programs"])]
    Path(f"{stem}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
