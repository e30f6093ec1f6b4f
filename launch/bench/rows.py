"""The rows of the bench on an accelerator: each item at the paper's sizes, or at tiny ones for a rehearsal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from launch.bench import classifiers, evaluation, gan, peers, projection, vrgan
from launch.bench.peers import torch
from launch.bench.program import Program

FORWARD = 1.111e9  # operations of CIFAR's ResNet-18 for one image; the input gradient takes as many again
ALIGN, GAN, VRGAN = 2.305e12 / 128, 2.353e12 / 50, 3.64e12 / 12  # operations for one image
COLUMNS = ("authors", "lean", "amp", "compiled")
ROWS = [
    *("cifar_pgd", "cifar_evaluate", "projection_bfloat16", "gan_iteration", "vrgan_224", "cifar_align"),
    *("cifar_square", "gan_bfloat16", "cifar_plain", "mnist_pgd", "mnist_align", "mnist_plain", "spheres_pgd"),
    *("spheres_align", "spheres_plain", "vrgan_28", "mnist_jacobian"),
]

# Together they cover the code of all rows.
REHEARSED = ["cifar_pgd", "cifar_evaluate", "projection_bfloat16", "gan_bfloat16", "vrgan_28", "cifar_square"]
REHEARSED += ["spheres_align", "mnist_jacobian"]


class Row(NamedTuple):
    """One measurement.

    Attributes:
      name: one of ROWS.
      program: ours.
      peer: PyTorch's side for a column of COLUMNS.
      flops: operations of one part.
      steps: steps of ours in one call.
      parts: parts of one step, or of one call of PyTorch's.
      columns: the columns of this row.
    """

    name: str
    program: Program
    peer: Callable[[str], Callable[[], Any]]
    flops: float | None
    steps: int = 1
    parts: int = 1
    columns: tuple[str, ...] = COLUMNS[:3]


class Sizes(NamedTuple):
    """Sizes of the items, and the work of one call.

    Attributes:
      images: batch size by data set.
      steps: training steps in one program, by data set.
      attack_steps: PGD steps.
      evaluated: images of an evaluation.
      queries: queries of Square Attack in one program.
      pairs: pairs of a projection.
      projection_steps: steps of a projection.
      gan_width: channels of the conditional GAN.
      gan_images: batch size of the conditional GAN.
      vrgan: pixels of a side, downsamplings, images and width, by item.
      vrgan_steps: VR-GAN steps in one program.
    """

    images: dict[str, int]
    steps: dict[str, int]
    attack_steps: int
    evaluated: int
    queries: int
    pairs: int
    projection_steps: int
    gan_width: int
    gan_images: int
    vrgan: dict[str, tuple[int, ...]]
    vrgan_steps: int


PAPER = Sizes(
    images={"cifar": 128, "mnist": 64, "spheres": 50},
    steps=classifiers.STEPS,
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
    """Build one of ROWS; PyTorch's networks are built with its sides."""
    data, kind = name.split("_")
    if data == "projection":
        return projection_row(name, sizes)
    if data == "gan":
        return gan_row(name, sizes, "bfloat16" if kind == "bfloat16" else classifiers.TRAINING)
    if data == "vrgan":
        return vrgan_row(name, sizes)
    if kind in ("evaluate", "square"):
        return evaluation_row(name, sizes)
    return classifier_row(name, sizes, attack_precision)


def classifier_row(name: str, sizes: Sizes, attack_precision: str) -> Row:
    """Return a training step of a classifier, or its input Jacobian."""
    data, method = name.split("_")
    experiment, count = classifiers.EXPERIMENTS[data], sizes.images[data]
    experiment = experiment._replace(image_shape=(count, *experiment.image_shape[1:]))
    given = classifiers.inputs(data, experiment)
    steps = 1 if method == "jacobian" else sizes.steps[data]
    program = classifiers.our_program(experiment, *given, method, steps, sizes.attack_steps, attack_precision)

    def peer(column: str) -> Callable[[], Any]:
        channels_last = column != "authors" and data != "spheres"
        return classifiers.peer_side(experiment, *given, method, sizes.attack_steps, column, channels_last)

    flops = None
    if data == "cifar":
        needed = {"plain": 3 * FORWARD, "pgd": (2 * sizes.attack_steps + 3) * FORWARD, "align": ALIGN}
        flops = count * needed[method]
    if data == "spheres":
        flops = classifiers.spheres_flops(method, sizes.attack_steps, count)
    columns = COLUMNS if method == "pgd" else COLUMNS[:3]
    return Row(name, program, peer, flops, steps, columns=columns)


def evaluation_row(name: str, sizes: Sizes) -> Row:
    """Return CIFAR's evaluation at one ε, or one query of Square Attack."""
    search = "bfloat16" if name == "cifar_evaluate" else "tf32"  # the configs' defaults on an accelerator
    case = evaluation.Case(sizes.evaluated, search, sizes.attack_steps)
    if name == "cifar_evaluate":
        flops = sizes.evaluated * (2 * sizes.attack_steps + 1) * FORWARD
        return Row(name, case.attacked(), case.attacked_peer, flops, columns=COLUMNS)
    return Row(name, case.queried(sizes.queries), case.queried_peer, sizes.evaluated * FORWARD, sizes.queries)


def projection_row(name: str, sizes: Sizes) -> Row:
    """Return the projection; times are for a step on all pairs."""
    size = sizes.pairs, sizes.projection_steps, sizes.gan_width

    def peer(column: str) -> Callable[[], Any]:
        theirs = column == "authors"
        return projection.peer_side(not theirs, not theirs, *size)

    program = projection.program("bfloat16", *size)
    return Row(name, program, peer, sizes.pairs * projection.FLOPS, parts=sizes.projection_steps)


def gan_row(name: str, sizes: Sizes, products: str) -> Row:
    """Return an iteration of the conditional GAN."""
    case = gan.Case(sizes.gan_width, sizes.gan_images, products)
    peer = partial(_by_style, case.peer_side)
    return Row(name, case.program(), peer, sizes.gan_images * GAN, gan.STEPS)


def vrgan_row(name: str, sizes: Sizes) -> Row:
    """Return a step of a VR-GAN."""
    case, steps = vrgan.Case(*sizes.vrgan[name]), sizes.vrgan_steps
    flops = sizes.vrgan[name][2] * VRGAN if name == "vrgan_224" else None
    return Row(name, case.program(steps), partial(_by_style, case.peer_side), flops, steps)


def _by_style(peer_side: Callable[..., Callable[[], Any]], column: str) -> Callable[[], Any]:
    theirs = column == "authors"
    return peer_side("authors" if theirs else "lean", not theirs)


def peer_side(row: Row, column: str) -> Callable[[], Any]:
    """Return PyTorch's side of a row: "amp" and "compiled" are the lean one under autocast."""
    torch.manual_seed(0)
    side = row.peer("lean" if column == "amp" else column)
    return peers.under_autocast(side) if column in ("amp", "compiled") else side
