"""Shows the programs that a GPU or a TPU runs, on a machine that has neither.

    python launch/compile_report.py --stablehlo                        # needs nothing but the package
    pip install -e ".[cuda]" && python launch/compile_report.py --target=h100 cifar_pgd
    pip install -e ".[tpu]" && python launch/compile_report.py --target=v5e --output=v5e cifar_project

--stablehlo lowers each program for "cuda" and for "tpu", prints its products by type and precision, and exits with 1
where one breaks the precision policy (launch/policy.py). --target compiles the programs at the paper's sizes for a
device that is described, not present, and prints for each what it takes; --output=STEM also writes STEM.json and
STEM.md. XLA tunes nothing without the device, so memory and bytes are close to what runs there, and times are bounds:
roofline is the larger of operations over peak and bytes over bandwidth.
"""

import argparse
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs uninstalled

from gradalign_jax.ops import platform
from launch import hlo, policy, programs, targets

COLUMNS = ("program", "batch", "compile s", "arguments GB", "temporary GB", "GFLOP a step", "of analytic", "by type")
COLUMNS += ("GB a step", "kernels a step", "collectives a step", "roofline ms a step", "largest batch that fits")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "programs", nargs="*", metavar="PROGRAM", help=f"default: all of {', '.join(programs.PROGRAMS)}"
    )
    parser.add_argument("--stablehlo", action="store_true", help="products by type; exit 1 where the policy is broken")
    parser.add_argument("--target", choices=targets.TARGETS, help="compile for this device")
    parser.add_argument("--devices", type=int, default=1, help="that many of them")
    parser.add_argument("--output", help="also write OUTPUT.json and OUTPUT.md")
    arguments = parser.parse_args()
    for name in arguments.programs:
        if name not in programs.PROGRAMS:
            parser.error(f"no program called {name!r}: use some of {', '.join(programs.PROGRAMS)}")
    if arguments.stablehlo == bool(arguments.target):
        parser.error("give either --stablehlo or --target")
    # As a run sets it: what is reported; searches and training choose for themselves.
    jax.config.update("jax_default_matmul_precision", "highest")
    names = arguments.programs or list(programs.PROGRAMS)
    if arguments.stablehlo:
        return stablehlo(names)
    return compiled(names, arguments.target, arguments.devices, arguments.output)


def stablehlo(names: list[str]) -> int:
    """Print each program's products on either platform; 1 if a program breaks the policy."""
    broken = 0
    for name in names:
        for kind, lowering in (("gpu", "cuda"), ("tpu", "tpu")):
            with platform.target(kind):
                program = programs.PROGRAMS[name](jax.local_devices()[:1])
                lowered = program.traced.lower(lowering_platforms=(lowering,))
            found = policy.products(lowered.compiler_ir("stablehlo"))
            lines = policy.violations(name, found)
            broken += bool(lines)
            print(f"\n{name}, {lowering}: {'; '.join(lines) or 'as the policy says'}")
            print("| loops around | product | types | precision | places |\n|---|---|---|---|---|")
            print("\n".join(policy.table(found)), flush=True)
    return 1 if broken else 0


def compiled(names: list[str], target: str, count: int, output: str | None) -> int:
    """Compile the programs for a target and print a row for each; 1 if one does not compile."""
    device, rows, failed = targets.TARGETS[target], [], False
    on = device.devices(count)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for name in names:
        try:
            rows.append(measure(name, device, on))
        except Exception as error:  # the compiler's own, say for memory: the other programs' rows are worth having
            failed = True
            rows.append({"program": name, "error": str(error).splitlines()[0]})
        print(row(rows[-1]), flush=True)
        if output:
            write(output, target, count, rows)
    return int(failed)


def measure(name: str, device: targets.Target, on: list[Any]) -> dict[str, Any]:
    """Compile one program and read what it takes."""
    with platform.target(device.kind):
        program = programs.PROGRAMS[name](on)
        lowered = program.traced.lower()
    start = time.perf_counter()
    executable = lowered.compile(device.options)
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    taken = hlo.cost(executable.as_text(), program.unknown)
    steps = program.steps
    flops = {kind: count / steps for kind, count in taken.flops.items()}
    bound = max(
        sum(count / device.peak(kind) for kind, count in flops.items()), taken.traffic / steps / device.bandwidth
    )
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "program": name,
        "batch": program.batch,
        "key": program.key,
        "steps": steps,
        "compile_seconds": seconds,
        "argument_bytes": arguments,
        "temporary_bytes": temporary,
        "flops": flops,
        "analytic_flops": 2 * program.macs * program.batch or None,
        "bytes": taken.traffic / steps,
        "kernels": taken.kernels / steps,
        "collectives": {kind: n / steps for kind, n in taken.collectives.items()},
        "roofline_seconds": bound,
        "largest_batch": int((0.9 * device.memory - arguments) / (temporary / program.batch)),
    }


def row(found: dict[str, Any]) -> str:
    """A program's row of the table."""
    if "error" in found:
        return f"| {found['program']} | {found['error']} |" + " |" * (len(COLUMNS) - 2)
    total = sum(found["flops"].values())
    cells = [found["program"], found["batch"], f"{found['compile_seconds']:.0f}"]
    cells += [f"{found[key] / 1e9:.2f}" for key in ("argument_bytes", "temporary_bytes")]
    cells += [f"{total / 1e9:,.1f}", f"{total / found['analytic_flops']:.3f}" if found["analytic_flops"] else "-"]
    cells.append(", ".join(f"{kind} {count / total:.0%}" for kind, count in sorted(found["flops"].items())))
    cells += [f"{found['bytes'] / 1e9:.2f}", f"{found['kernels']:.0f}"]
    cells.append(", ".join(f"{kind} {count:.0f}" for kind, count in found["collectives"].items()) or "-")
    cells += [f"{1e3 * found['roofline_seconds']:.2f}", f"{found['key']}={found['largest_batch']}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def write(stem: str, target: str, count: int, rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON and as Markdown."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    report = {"target": target, "devices": count, "versions": versions, "programs": rows}
    Path(f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(row, rows)]
    Path(f"{stem}.md").write_text(f"{target} x {count}, jax {versions['jax']}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
