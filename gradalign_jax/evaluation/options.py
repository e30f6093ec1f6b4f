"""The attacks of an evaluation and their settings. Sizes are in units of the images; defaults are the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradalign_jax.ops import precision
from gradalign_jax.types import IMAGE_RANGE

SUITES = ("autoattack", "malt")


def _check_precision(name: str) -> None:
    if name not in precision.NAMES:
        raise ValueError(f"unknown precision {name!r}: use one of {', '.join(precision.NAMES)}")


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent.

    norms: "linf", "l2" or both.
    steps: gradient steps.
    step_size: of PGD L∞. The paper's 0.02 moves an image by 0.8 in 40 steps, too little for ε above about 0.4.
    l2_step_size: of PGD L2; None: `step_size` times √n, for an image of n values.
    l2_epsilons: ascending, > 0; None: the L∞ ε times √n.
    loss: "cross_entropy", or "margin", whose gradient does not vanish where the classifier is very confident.
    precision: of the search, one of `ops.precision.NAMES`; the images it finds are classified in float32.
    """

    norms: Sequence[str] = ("linf", "l2")
    steps: int = 40
    step_size: float = 0.02
    l2_step_size: float | None = None
    l2_epsilons: Sequence[float] | None = None
    loss: str = "cross_entropy"
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Raise ValueError on an unknown precision."""
        _check_precision(self.precision)


@dataclass(frozen=True)
class Square:
    """Square Attack.

    queries: budget for each image and ε.
    images: number of images attacked (0 = all).
    precision: of the search, as in `PGD`.
    norm: "linf" or "l2".
    """

    queries: int = 5000
    images: int = 0
    precision: str = "float32"
    norm: str = "linf"

    def __post_init__(self) -> None:
        """Raise ValueError on an unknown norm or precision."""
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"unknown norm {self.norm!r}: use linf or l2")
        _check_precision(self.precision)


@dataclass(frozen=True)
class CW:
    """Carlini and Wagner's L2 attack: the distance to the nearest misclassified image it finds.

    images: number of images attacked.
    iterations: steps of Adam for each of 9 constants, at most.
    learning_rate: of Adam. The paper's 0.02 suits images; its Spheres need 0.002.
    """

    images: int = 100
    iterations: int = 10_000
    learning_rate: float = 0.02


@dataclass(frozen=True)
class Suite:
    """A sequence of attacks, each on the images that the ones before it did not fool.

    name: "autoattack" (APGD-CE, APGD-T, FAB-T, Square Attack; Croce & Hein 2020), or "malt" (APGD-T towards the classes
      with the nearest linearized boundaries; Melamed et al. 2024).
    norm: "linf" or "l2".
    steps: gradient steps of each attack and target.
    targets: number of wrong classes that targeted attacks try.
    queries: budget of Square Attack.
    precision: of the searches, as in `PGD`.
    """

    name: str = "autoattack"
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    queries: int = 5000
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
          ValueError: if the name or norm is unknown, or a count is below 1.
        """
        if self.name not in SUITES:
            raise ValueError(f"unknown suite {self.name!r}: use one of paper, {', '.join(SUITES)}")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"unknown norm {self.norm!r}: use linf or l2")
        for name in ("steps", "targets", "queries"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of a suite must be an integer >= 1")
        _check_precision(self.precision)


@dataclass(frozen=True)
class Attacks:
    """Every attack of an evaluation; None leaves one out.

    epsilons: ascending, > 0: of PGD L∞ and Square Attack.
    bounds: smallest and largest value of an attacked image.
    """

    epsilons: Sequence[float]
    pgd: PGD | None = None
    square: Square | None = None
    cw: CW | None = None
    bounds: tuple[float, float] = IMAGE_RANGE

    @property
    def loss(self) -> str:
        """The white-box attacks' loss."""
        return (self.pgd or PGD()).loss
