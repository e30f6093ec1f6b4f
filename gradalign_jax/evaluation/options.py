"""The attacks of an evaluation and their settings. Sizes are in units of the images; defaults are the paper's."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradalign_jax import gradients
from gradalign_jax.ops import precision
from gradalign_jax.types import IMAGE_RANGE, Array, DeltaX, Gradient

SUITES = ("autoattack", "malt")
MEASURES = ("etmann", "removal", "tangent", "noise")


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
class Directions:
    """Gradients to measure beside the paper's, each against every Δx.

    gradients: names of files of gradalign_jax/gradients, or functions by name (`types.Gradient`).
    delta_x: further Δx by name; the argument `delta_x` of `evaluate` is one of them by the name "delta_x".
    measures: some of "etmann" (|<x, g>| / |g|), "removal" (accuracy without the pixels that a gradient ranks highest),
      "tangent" (share of a gradient in a tangent space) and "noise" (change of the prediction by noise in that space
      and orthogonal to it).
    tangent_space: (label `[B]`, index `[B]`) -> orthonormal basis `[B, n, d]`, such as `measures.tangent.basis` of a
      generator's Jacobian; for "tangent" and "noise".
    """

    gradients: Sequence[str] | Mapping[str, Gradient] = ("plain", "smoothgrad", "integrated")
    delta_x: Mapping[str, DeltaX] = field(default_factory=dict)
    measures: Sequence[str] = ()
    tangent_space: Callable[[Array, Array], Array] | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
          ValueError: if a gradient or a measure is unknown, a name has a slash, or a measure lacks its tangent space.
        """
        for name in (*self.functions, *self.delta_x):
            if "/" in name:
                raise ValueError(f"name {name!r} of a gradient or Δx has a slash: choose another one")
        for name in self.measures:
            if name not in MEASURES:
                raise ValueError(f"unknown measure {name!r}: use some of {', '.join(MEASURES)}")
            if name in ("tangent", "noise") and self.tangent_space is None:
                raise ValueError(f"measure {name!r} needs tangent_space: bases of a generator's tangent spaces")

    @property
    def functions(self) -> dict[str, Gradient]:
        """The gradients by name."""
        if isinstance(self.gradients, Mapping):
            return dict(self.gradients)
        return {name: gradients.create(name) for name in self.gradients}

    def with_functions(self, delta_x: Mapping[str, DeltaX], tangent_space: Any) -> "Directions":
        """Return a copy with another Δx and tangent space, as a program has them: with traced arrays."""
        return dataclasses.replace(self, delta_x=delta_x, tangent_space=tangent_space or None)


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
