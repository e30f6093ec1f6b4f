"""The precision policy: the products of a traced program, read from its StableHLO, and the rule of each program.

Nothing is compiled and no device is needed: any machine can lower a program for "cuda" or "tpu".
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

_PRODUCTS = ("stablehlo.convolution", "stablehlo.dot_general")
_PASSES = ("stablehlo.convert", "stablehlo.transpose", "stablehlo.reverse", "stablehlo.optimization_barrier")


class Product(NamedTuple):
    """A convolution or a matrix product.

    Attributes:
      kind: "convolution" or "dot_general".
      types: of both factors and of the result.
      depth: number of loops around it.
      precision: "DEFAULT", "HIGH" or "HIGHEST", of float32 factors; "HIGHEST" are not shortened.
      prepared: whether the function that convolves uses the kernel as it is. The flip of a strided input gradient
        is allowed, because XLA makes it part of the convolution.
    """

    kind: str
    types: tuple[str, str, str]
    depth: int
    precision: str
    prepared: bool


class Rule(NamedTuple):
    """Where a program searches and where it reports.

    Attributes:
      search: the loop depth from which on it searches: all convolutions there have one type, and prepared kernels.
      report: whether products outside of loops are reported values, at the highest precision. No other product may
        have that precision.
      prepared: whether the search's kernels have to be prepared.
      dtype: the type of the search's convolutions.
      factors: the type of all factors in a search, if they have to have one.
    """

    search: int | None
    report: bool = False
    prepared: bool = True
    dtype: str = "bf16"
    factors: str | None = None


# A training program is a loop over steps, which contains the attack's loop; a projection is a loop over two phases.
RULES = {
    "cifar_baseline": Rule(None),
    "cifar_alignment": Rule(None, report=True),
    "cifar_pgd": Rule(2),
    "cifar_align": Rule(None),
    "cifar_evaluate": Rule(1, report=True),
    "cifar_square": Rule(1, report=True, dtype="f32"),  # TF32
    "cifar_gan": Rule(None),
    "cifar_gan_bfloat16": Rule(0, prepared=False),  # kernels change in every step
    "cifar_project": Rule(1, report=True, dtype="f32"),  # TF32
    "cifar_project_bfloat16": Rule(1, report=True),
    "squares_vrgan": Rule(None),
    "mnist_pgd": Rule(2),
    "mnist_align": Rule(None),
    "spheres_pgd": Rule(2, factors="bf16"),
}


def products(module: Any) -> list[Product]:
    """Return the products of a module, `lowered.compiler_ir("stablehlo")`, once for each call."""
    functions = {str(op.attributes["sym_name"]).strip('"'): op for op in module.body.operations}
    return list(_walk(functions["main"], functions, 0))


def _walk(op: Any, functions: dict[str, Any], depth: int) -> Iterator[Product]:
    for region in op.regions:
        inside = depth + (op.operation.name == "stablehlo.while")
        for block in region.blocks:
            for inner in block.operations:
                name = inner.operation.name
                if name in _PRODUCTS:
                    yield _product(inner, inside)
                if "callee" in inner.attributes:
                    callee = str(inner.attributes["callee"]).lstrip("@").strip('"')
                    yield from _walk(functions[callee], functions, inside)
                yield from _walk(inner, functions, inside)


def _product(op: Any, depth: int) -> Product:
    types = tuple(str(value.type.element_type) for value in (*op.operands, op.results[0]))
    config = str(op.attributes["precision_config"]) if "precision_config" in op.attributes else ""
    precision = next((name for name in ("HIGHEST", "HIGH") if name in config), "DEFAULT")
    kind = op.operation.name.removeprefix("stablehlo.")
    return Product(kind, types, depth, precision, kind != "convolution" or _is_prepared(op))


def _is_prepared(op: Any) -> bool:
    dilated = "lhs_dilation" in op.attributes and any(n > 1 for n in op.attributes["lhs_dilation"])
    passes, kernel = [], op.operands[1]
    while (owner := getattr(kernel.owner, "operation", None)) is not None and owner.name in _PASSES:
        passes.append(owner.name)
        kernel = owner.operands[list(owner.results).index(kernel) if "barrier" in owner.name else 0]
    changes = [name for name in passes if "barrier" not in name]
    return not changes or (dilated and changes == ["stablehlo.reverse"])


def violations(name: str, found: list[Product]) -> list[str]:
    """Return a line for each way in which a program breaks its rule, with a count."""
    rule, lines = RULES[name], []
    if not found:
        lines.append("no products")
    for product in found:
        searching = rule.search is not None and product.depth >= rule.search
        if searching and product.kind == "convolution" and set(product.types) != {rule.dtype}:
            lines.append(f"a search convolves {' x '.join(product.types[:2])} -> {product.types[2]}")
        if searching and rule.factors and {*product.types[:2]} != {rule.factors}:
            lines.append(f"a search multiplies {' x '.join(product.types[:2])}")
        if searching and rule.prepared and not product.prepared:
            lines.append("a search converts, transposes or flips a kernel in its loop")
        highest = product.precision == "HIGHEST"
        if highest != (rule.report and product.depth == 0):
            verb = "has" if highest else "lacks"
            lines.append(f"a {product.kind} at loop depth {product.depth} {verb} the highest precision")
    return [f"{line} ({count} times)" for line, count in Counter(lines).items()]


def table(found: list[Product]) -> list[str]:
    """Return rows of a Markdown table: the products of a program by loop depth, kind, types and precision."""
    counts = Counter((p.depth, p.kind, *p.types, p.precision) for p in found)
    return [
        f"| {depth} | {kind} | {a} x {b} -> {result} | {precision} | {count} |"
        for (depth, kind, a, b, result, precision), count in sorted(counts.items())
    ]
