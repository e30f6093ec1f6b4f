"""Reads the text of a compiled HLO module: floating-point operations by type, bytes moved, kernels and collectives.

XLA's own cost analysis counts a loop's body once; here it counts as often as it runs. A convolution's operations
include those on the zeros of its padding, as the usual formula does, and those on zeros that a dilation put between
pixels.
"""

import re
from collections import Counter
from math import prod
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What launches nothing and moves nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"iota", "opt-barrier", "partition-id", "copy-done", "all-reduce-done"}


class Shape(NamedTuple):
    """An array's type and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return _BYTES.get(self.dtype, 4) * prod(self.dims)


class Instruction(NamedTuple):
    """One line: its name, kind, result's shapes, operands' names, and the text after them."""

    name: str
    kind: str
    shapes: list[Shape]
    operands: list[str]
    rest: str


class Cost(NamedTuple):
    """What one call of a module takes: operations by "kind types precision", bytes, kernels, collectives."""

    flops: Counter
    traffic: int
    kernels: int
    collectives: Counter


def _shapes(text: str) -> list[Shape]:
    return [Shape(kind, tuple(map(int, filter(None, dims.split(","))))) for kind, dims in _SHAPE.findall(text)]


def _closing(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`."""
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
    operands = re.findall(r"%([\w.\-]+)", text[start:close])
    return Instruction(name, found[1], _shapes(text[:end]), operands, text[close + 1 :])


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation, and the name of the entry."""
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


def _runs(computations: dict[str, list[Instruction]], entry: str, unknown: int) -> tuple[Counter, set[str]]:
    """How often each computation runs, and which of them are parts of a fused kernel."""
    count: Counter = Counter()
    fused: set[str] = set()

    def visit(name: str, times: int, inside: bool) -> None:
        count[name] += times
        if inside:
            fused.add(name)
        for one in computations.get(name, ()):
            repeat = 1
            if one.kind == "while":
                trip = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', one.rest)
                repeat = int(trip[1]) if trip else unknown
            for called in _CALLED.findall(one.rest):
                if called in computations:
                    visit(called, times * repeat, inside or one.kind == "fusion")

    visit(entry, 1, False)
    return count, fused


def _convolution_flops(one: Instruction, operands: list[Shape]) -> int:
    """2 x the products of a convolution, of cuDNN's own input and weight gradients as well."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)[1]
    kernel, result = operands[1], one.shapes[0]
    # A gradient's labels are those of the convolution that it belongs to.
    if "BackwardInput" in one.rest:
        result = operands[0]
    elif "BackwardFilter" in one.rest:
        kernel, result = one.shapes[0], operands[1]
    taps = prod(size for size, label in zip(kernel.dims, labels, strict=True) if label.isdigit())
    return 2 * prod(result.dims) * taps * kernel.dims[labels.index("i")]


def _dot_flops(one: Instruction, operands: list[Shape]) -> int:
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', one.rest)
    contracted = [int(d) for d in re.findall(r"\d+", found[1])] if found else []
    return 2 * prod(one.shapes[0].dims) * prod(operands[0].dims[d] for d in contracted)


def _traffic(one: Instruction, operands: list[Shape]) -> int:
    written = sum(shape.size for shape in one.shapes)
    whole = written + sum(shape.size for shape in operands)
    # What reads or writes a part of a large array does not touch all of it.
    part = re.search(r"dynamic.?(update.?)?slice|gather|scatter", one.kind + one.name + one.rest[:200])
    return min(whole, 4 * written) if part else whole


def cost(text: str, unknown: int = 1) -> Cost:
    """Add up a module's cost; a loop whose length XLA does not know counts `unknown` times."""
    computations, entry = parse(text)
    count, fused = _runs(computations, entry, unknown)
    known = {one.name: one for part in computations.values() for one in part}
    flops, collectives, traffic, kernels = Counter(), Counter(), 0, 0
    for name, times in count.items():
        for one in computations.get(name, ()):
            operands = [known[o].shapes[0] for o in one.operands if o in known and known[o].shapes]
            if "dim_labels=" in one.rest or one.kind == "dot" or "lhs_contracting_dim" in one.rest:
                of = _convolution_flops if "dim_labels=" in one.rest else _dot_flops
                what = "convolution" if of is _convolution_flops else "dot"
                highest = " highest" if re.search(r'precision(=\{|":\[")highest', one.rest, re.IGNORECASE) else ""
                types = " x ".join(shape.dtype for shape in operands[:2])
                flops[f"{what} {types}{highest}"] += times * of(one, operands)
            if name in fused or one.kind in _FREE:
                continue
            kernels += times
            traffic += times * _traffic(one, operands)
            collectives += {c: times for c in _COLLECTIVES if one.kind.startswith(c)}
    return Cost(flops, traffic, kernels, collectives)
