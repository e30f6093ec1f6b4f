"""The rows of bench.py on an accelerator: each item at the paper's sizes, or at tiny ones for a rehearsal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from launch import bench_evaluation, bench_gan, bench_items, bench_peers, bench_projection, bench_vrgan
from launch.bench_peers import torch
from launch.bench_program import Program

FORWARD = 1.111e9  # operations of CIFAR's ResNet-18 for one image; a backward pass to the image takes as many
ALIGN, GAN, VRGAN = 2.305e12 / 128, 2.353e12 / 50, 3.64e12 / 12  # for one image
COLUMNS = ("authors", "lean", "amp", "compiled")
ROWS = [
    *("cifar_pgd", "cifar_evaluate", "projection_bfloat16", "gan_iteration", "vrgan_224", "cifar_align"),
    *("cifar_square", "gan_bfloat16", "cifar_plain", "mnist_pgd", "mnist_align", "mnist_plain", "spheres_pgd"),
    *("spheres_align", "spheres_plain", "vrgan_28", "mnist_jacobian"),
]

# Together they run every line that the others would.
REHEARSED = ["cifar_pgd", "cifar_evaluate", "projection_bfloat16", "gan_bfloat16", "vrgan_28", "cifar_square"]
REHEARSED += ["spheres_align", "mnist_jacobian"]


class Row(NamedTuple):
    """One measurement: our program, PyTorch's side for a column of COLUMNS, and the operations of one part.

    steps: of ours in one call. parts: of one step, or of a call of PyTorch's. columns: those that this row has.
    """

    name: str
    program: Program
    peer: Callable[[str], Callable[[], Any]]
    flops: float | None
    steps: int = 1
    parts: int = 1
    columns: tuple[str, ...] = COLUMNS[:3]


class Sizes(NamedTuple):
    """Images of each item, and how much of it one call does."""

    images: dict[str, int]
    steps: dict[str, int]
    attack_steps: int
    evaluated: int
    queries: int
    pairs: int
    projection_steps: int
    gan_width: int
    gan_images: int
    vrgan: dict[str, tuple[int, ...]]  # pixels of a side, downsamplings, images, width
    vrgan_steps: int


PAPER = Sizes(
    images={"cifar": 128, "mnist": 64, "spheres": 50},
    steps=bench_items.STEPS,
    attack_steps=40,
    evaluated=100,
    queries=100,
    pairs=2048,
    projection_steps=10,
    gan_width=256,
    gan_images=50,
    vrgan={"vrgan_28": (28, 2, 12, 64), "vrgan_224": (224, 4, 12, 64)},
    vrgan_steps=4,
)
REHEARSAL = Sizes(
    images={"cifar": 2, "mnist": 2, "spheres": 4},
    steps={"cifar": 1, "mnist": 1, "spheres": 2},
    attack_steps=1,
    evaluated=2,
    queries=2,
    pairs=4,
    projection_steps=2,
    gan_width=16,
    gan_images=2,
    vrgan={"vrgan_28": (28, 2, 2, 4), "vrgan_224": (32, 4, 2, 4)},
    vrgan_steps=1,
)


def build(name: str, sizes: Sizes, attack_precision: str) -> Row:
    """Return one of ROWS; PyTorch's networks are made when its sides are."""
    data, kind = name.split("_")
    if data == "projection":
        return projection(name, sizes)
    if data == "gan":
        return gan(name, sizes, "bfloat16" if kind == "bfloat16" else bench_items.TRAINING)
    if data == "vrgan":
        return vrgan(name, sizes)
    if kind in ("evaluate", "square"):
        return evaluation(name, sizes)
    return classifier(name, sizes, attack_precision)


def classifier(name: str, sizes: Sizes, attack_precision: str) -> Row:
    """A training step of a classifier, or its input Jacobian."""
    data, method = name.split("_")
    experiment, count = bench_items.EXPERIMENTS[data], sizes.images[data]
    experiment = experiment._replace(image_shape=(count, *experiment.image_shape[1:]))
    given = bench_items.inputs(data, experiment)
    steps = 1 if method == "jacobian" else sizes.steps[data]
    program = bench_items.our_program(experiment, *given, method, steps, sizes.attack_steps, attack_precision)

    def peer(column: str) -> Callable[[], Any]:
        channels_last = column != "authors" and data != "spheres"
        return bench_items.peer_side(experiment, *given, method, sizes.attack_steps, column, channels_last)

    flops = None
    if data == "cifar":
        needed = {"plain": 3 * FORWARD, "pgd": (2 * sizes.attack_steps + 3) * FORWARD, "align": ALIGN}
        flops = count * needed[method]
    if data == "spheres":
        flops = bench_items.spheres_flops(method, sizes.attack_steps, count)
    columns = COLUMNS if method == "pgd" else COLUMNS[:3]
    return Row(name, program, peer, flops, steps, columns=columns)


def evaluation(name: str, sizes: Sizes) -> Row:
    """CIFAR's evaluation at one ε, or one query of Square Attack."""
    search = "bfloat16" if name == "cifar_evaluate" else "tf32"  # the configs' defaults on an accelerator
    case = bench_evaluation.Case(sizes.evaluated, search, sizes.attack_steps)
    if name == "cifar_evaluate":
        flops = sizes.evaluated * (2 * sizes.attack_steps + 1) * FORWARD
        return Row(name, case.attacked(), case.attacked_peer, flops, columns=COLUMNS)
    return Row(name, case.queried(sizes.queries), case.queried_peer, sizes.evaluated * FORWARD, sizes.queries)


def projection(name: str, sizes: Sizes) -> Row:
    """The projection; times are for a step of all pairs."""
    size = sizes.pairs, sizes.projection_steps, sizes.gan_width

    def peer(column: str) -> Callable[[], Any]:
        theirs = column == "authors"
        return bench_projection.peer_side(not theirs, not theirs, *size)

    program = bench_projection.program("bfloat16", *size)
    return Row(name, program, peer, sizes.pairs * bench_projection.FLOPS, parts=sizes.projection_steps)


def gan(name: str, sizes: Sizes, products: str) -> Row:
    """An iteration of the conditional GAN."""
    case = bench_gan.Case(sizes.gan_width, sizes.gan_images, products)
    peer = partial(_by_style, case.peer_side)
    return Row(name, case.program(), peer, sizes.gan_images * GAN, bench_gan.STEPS)


def vrgan(name: str, sizes: Sizes) -> Row:
    """A step of generator and critic."""
    case, steps = bench_vrgan.Case(*sizes.vrgan[name]), sizes.vrgan_steps
    flops = sizes.vrgan[name][2] * VRGAN if name == "vrgan_224" else None
    return Row(name, case.program(steps), partial(_by_style, case.peer_side), flops, steps)


def _by_style(peer_side: Callable[..., Callable[[], Any]], column: str) -> Callable[[], Any]:
    theirs = column == "authors"
    return peer_side("authors" if theirs else "lean", not theirs)


def peer_side(row: Row, column: str) -> Callable[[], Any]:
    """Return PyTorch's side of a row: "amp" and "compiled" are the lean one under autocast."""
    torch.manual_seed(0)
    side = row.peer("lean" if column == "amp" else column)
    return bench_peers.under_autocast(side) if column in ("amp", "compiled") else side
