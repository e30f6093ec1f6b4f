"""Cost of a compiled HLO module, read from its text: operations by type, bytes moved, kernels, collectives.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs. The operations of a
convolution include the zeros of its padding, as in the usual formula. They include the zeros that a dilation puts
between pixels where they are in memory, as on a GPU, and not where the window says it: a TPU skips those (libtpu
estimates as many cycles for a strided convolution as for its dilated gradient).
"""

import re
from collections import Counter
from math import prod
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_PRECISION = re.compile(r'precision(?:=\{|":\[")(\w+)', re.IGNORECASE)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CONTROL = {"while", "conditional", "call", "async-start"}  # what others call is a part of them: fusions, reductions
# Instructions that launch nothing and move nothing; the work of an asynchronous one is where it starts.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"iota", "opt-barrier", "partition-id", "copy-done", "all-reduce-done", "all-gather-done"}
_FREE |= {"collective-permute-done", "async-start", "async-update", "async-done"}


class Shape(NamedTuple):
    """The type and dimensions of an array, and whether it stays on the chip (a TPU's memory space 1)."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return _BYTES.get(self.dtype, 4) * prod(self.dims)

    @property
    def moved(self) -> int:
        """Bytes of device memory that reading or writing it moves."""
        return 0 if self.on_chip else self.size


class Instruction(NamedTuple):
    """A line: its name, opcode, result shapes, operands (as text and by name) and the attributes after them."""

    name: str
    kind: str
    shapes: list[Shape]
    inside: str
    operands: list[str]
    rest: str


class Cost(NamedTuple):
    """The cost of one call of a module.

    Attributes:
      flops: operations by "convolution|dot TYPE x TYPE [precision]"; the precision is that of float32 factors.
      traffic: bytes read and written by kernels.
      kernels: instructions that run, fused ones as one.
      collectives: how many of each kind.
      cycles: the TPU compiler's own estimate; 0 elsewhere.
    """

    flops: Counter
    traffic: int
    kernels: int
    collectives: Counter
    cycles: int


def _shapes(text: str) -> list[Shape]:
    return [
        Shape(kind, tuple(map(int, filter(None, dims.split(",")))), "S(1)" in layout)
        for kind, dims, layout in _SHAPE.findall(text)
    ]


def _closing(text: str, start: int) -> int:
    """Return the position of the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    return len(text) - 1


def _instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", text[end:])
    if not found:
        return None
    start = end + found.end() - 1
    close = _closing(text, start)
    inside = text[start + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, found[1], _shapes(text[:end]), inside, operands, text[close + 1 :])


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[1], found[2])
            if instruction:
                current.append(instruction)
    return computations, entry


def _trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Return how often a loop runs, or None if the text does not say.

    The GPU compiler writes the count down. The TPU compiler does not: there it is the constant that the condition,
    possibly fused, compares the counter with.
    """
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known[1])
    condition = _CONDITION.search(loop.rest)
    lines = list(computations.get(condition[1], ())) if condition else []
    if lines and lines[-1].kind == "fusion":
        lines += computations.get(_CALLED.search(lines[-1].rest)[1], ())
    if not lines or lines[-1].kind != "compare":
        return None
    bounds = {int(one.inside) for one in lines if one.kind == "constant" and one.inside.isdigit()}
    return bounds.pop() if len(bounds) == 1 else None


def _runs(computations: dict[str, list[Instruction]], entry: str, unknown: int) -> tuple[Counter, set[str]]:
    """Return how often each computation runs, and which of them are parts of a kernel."""
    count: Counter = Counter()
    fused: set[str] = set()

    def visit(name: str, times: int, inside: bool) -> None:
        count[name] += times
        if inside:
            fused.add(name)
        for one in computations.get(name, ()):
            repeat = (_trip_count(one, computations) or unknown) if one.kind == "while" else 1
            for called in _CALLED.findall(one.rest):
                if called in computations:
                    visit(called, times * repeat, inside or one.kind not in _CONTROL)

    visit(entry, 1, False)
    return count, fused


def _convolution_flops(one: Instruction, operands: list[Shape]) -> int:
    """Return 2 x the multiply-accumulates of a convolution, or of cuDNN's input or weight gradient."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)[1]
    kernel, result = operands[1], one.shapes[0]
    # A gradient's labels are those of the convolution that it belongs to.
    if "BackwardInput" in one.rest:
        result = operands[0]
    elif "BackwardFilter" in one.rest:
        kernel, result = one.shapes[0], operands[1]
    taps = prod(size for size, label in zip(kernel.dims, labels, strict=True) if label.isdigit())
    dilation = re.search(r"lhs_dilate=([\dx]+)", one.rest)
    zeros = prod(map(int, dilation[1].split("x"))) if dilation else 1
    return 2 * prod(result.dims) * taps * kernel.dims[labels.index("i")] // zeros


def _dot_flops(one: Instruction, operands: list[Shape]) -> int:
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', one.rest)
    contracted = [int(d) for d in re.findall(r"\d+", found[1])] if found else []
    return 2 * prod(one.shapes[0].dims) * prod(operands[0].dims[d] for d in contracted)


def _product(one: Instruction, operands: list[Shape]) -> tuple[str, int] | None:
    """Return the description and the operations of a convolution or matrix product, None for anything else."""
    if "dim_labels=" in one.rest:
        kind, flops = "convolution", _convolution_flops(one, operands)
    elif one.kind == "dot" or "lhs_contracting_dim" in one.rest:
        kind, flops = "dot", _dot_flops(one, operands)
    else:
        return None
    types = [shape.dtype for shape in operands[:2]]
    found = _PRECISION.search(one.rest)
    precision = found[1].lower() if found and "f32" in types else "default"
    return " ".join([kind, " x ".join(types), *([precision] if precision != "default" else [])]), flops


def _traffic(one: Instruction, operands: list[Shape]) -> int:
    results = one.shapes[:1] if one.kind.endswith("-start") else one.shapes  # the others of a start are its operands
    whole = sum(shape.moved for shape in (*results, *operands))
    # An instruction that reads or writes a slice of a large array does not touch all of it.
    part = re.search(r"dynamic.?(update.?)?slice|gather|scatter", one.kind + one.name + one.rest[:200])
    return min(whole, 4 * sum(shape.size for shape in results)) if part else whole


def cost(text: str, unknown: int = 1) -> Cost:
    """Return the cost of one call of a module.

    Args:
      text: the optimized module, `compiled.as_text()`.
      unknown: iterations of a loop whose length is not in the text.
    """
    computations, entry = parse(text)
    count, fused = _runs(computations, entry, unknown)
    by_name = {one.name: one for part in computations.values() for one in part}
    flops, collectives, traffic, kernels, cycles = Counter(), Counter(), 0, 0, 0
    for name, times in count.items():
        for one in computations.get(name, ()):
            operands = [by_name[o].shapes[0] for o in one.operands if o in by_name and by_name[o].shapes]
            if product := _product(one, operands):
                flops[product[0]] += times * product[1]
            if name in fused or one.kind in _FREE:
                continue
            kernels += times
            cycles += times * int(found[1] if (found := _CYCLES.search(one.rest)) else 0)
            traffic += times * _traffic(one, operands)
            collectives += {c: times for c in _COLLECTIVES if one.kind.startswith(c)}
    return Cost(flops, traffic, kernels, collectives, cycles)
