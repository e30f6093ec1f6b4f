"""Reasons to doubt an evaluation's numbers, in plain words (after the checks of AutoAttack).

Robustness is what the attacks did not break, so signs of weak attacks belong beside every number.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

NAMES = {"pgd_linf": "PGD L∞", "pgd_l2": "PGD L2", "square_linf": "Square Attack"}
# Smaller differences of error rates may come from the attacks' random starts.
_NOISE = 0.01


def _of_curve(name: str, curve: Mapping[str, Any]) -> list[str]:
    epsilons, errors = curve["epsilons"], curve["errors"]
    lines = []
    falls = [(b - a, i) for i, (b, a) in enumerate(pairwise(errors))]
    most, i = max(falls, default=(0.0, 0))
    if most > _NOISE:
        lines.append(
            f"under {name} the error falls from {errors[i]:.1%} to {errors[i + 1]:.1%} as ε rises from {epsilons[i]:g} "
            f"to {epsilons[i + 1]:g}: a larger ball cannot be safer, so the attack is too weak there"
        )
    if curve["censored"]:
        lines.append(
            f"ε50% under {name} is censored: its largest ε leaves the error at {errors[-1]:.1%}, under 51 %, so the "
            "number describes that ε more than the classifier"
        )
    elif errors[-1] < 1:
        lines.append(
            f"{name} at its largest ε={epsilons[-1]:g} leaves {1 - errors[-1]:.1%} of the images correctly "
            "classified: with an ε that large an attack should fool all"
        )
    return lines


def collect(
    curves: Mapping[str, Mapping[str, Any]],
    zero_gradients: float | None = None,
    white_box: Sequence[float] | None = None,
    loss: str = "cross_entropy",
) -> list[str]:
    """Return reasons to doubt an evaluation's numbers, a line each; [] if there are none.

    Args:
      curves: by attack (`pgd_linf`, `pgd_l2`, `square_linf`): `epsilons`, `errors`, and `censored` as in
        `robustness.epsilon_half`.
      zero_gradients: share of images where the gradient of the attack's loss is zero or not finite in every pixel.
      white_box: errors of PGD L∞ on the images and at the ε of `square_linf`; None: those of its curve.
      loss: of PGD.
    """
    lines = []
    if zero_gradients and any(name.startswith("pgd") for name in curves):
        remedy = "rely on Square Attack there" if loss == "margin" else "attack with the margin loss"
        lines.append(_blind(zero_gradients, f"PGD is blind there, and its errors are too low; {remedy}"))
    clean = max((curve["errors"][0] for curve in curves.values()), default=0.0)
    if clean >= 0.5:
        lines.append(f"{clean:.1%} of the images are misclassified without an attack: ε50% is 0 under every attack")
    for name, curve in curves.items():
        lines += _of_curve(NAMES.get(name, name), curve)
    black = curves.get("square_linf")
    white = white_box if white_box is not None else curves.get("pgd_linf", {}).get("errors")
    if black and white is not None and len(white) == len(black["errors"]):
        gap, i = max((b - w, i) for i, (b, w) in enumerate(zip(black["errors"], white, strict=True)))
        if gap > _NOISE:
            lines.append(
                f"the black box beats the white box: at ε={black['epsilons'][i]:g} Square Attack has an error of "
                f"{black['errors'][i]:.1%}, PGD L∞ {white[i]:.1%} on the same images; gradients mislead PGD, or it "
                "needs more steps or larger ones"
            )
    return lines


def _blind(share: float, consequence: str) -> str:
    return f"the attacks' loss has no gradient, zero or not a number, on {share:.1%} of the images: {consequence}"


def blind_suite(name: str, zero_gradients: float) -> list[str]:
    """Return a line if the cross-entropy has no gradient on a share of the images, for the suite `name`."""
    if not zero_gradients:
        return []
    black_box = "its Square Attack" if name == "autoattack" else "suite='autoattack', whose Square Attack needs none"
    return [_blind(zero_gradients, f"attacks with gradients may be blind there; rely on {black_box}")]


def not_finite(alignments: Mapping[str, np.ndarray]) -> list[str]:
    """Return a line for each alignment `[N]` that is not a number on some images, so that its mean is left out."""
    lines = []
    for name, values in alignments.items():
        if count := int(np.sum(~np.isfinite(values))):
            lines.append(
                f"{name} is not a number on {count} of {len(values)} images, where Δx or the gradient is not finite: "
                "its mean is left out"
            )
    return lines


def far_descent(distance: np.ndarray, smallest_epsilon: np.ndarray) -> list[str]:
    """Return a line if Carlini and Wagner's distance exceeds an ε at which PGD L2 fooled the same image.

    Args:
      distance: `[n]`, of the first n images; +inf where the attack failed.
      smallest_epsilon: `[N]`, the smallest ε at which PGD L2 fooled each image; +inf where none did.
    """
    farther = distance > smallest_epsilon[: len(distance)] * (1 + _NOISE)
    if not farther.any():
        return []
    return [
        f"Carlini and Wagner's distance is larger than an ε at which PGD L2 fooled the same image on {farther.sum()} "
        f"of {len(distance)} images: its descent is too coarse; lower its learning rate"
    ]


def of_suite(
    curves: Mapping[str, Mapping[str, Any]], norm: str, again: tuple[float, int, int] | None = None
) -> list[str]:
    """Return reasons to doubt a suite's numbers.

    Args:
      curves: by attack, in order, each cumulative, and as "worst_NORM".
      norm: of the attacks.
      again: ε, the number of survivors that the first attack tried from another random start, and how many it fooled.
    """
    worst = curves[f"worst_{norm}"]
    lines = _of_curve("the worst case of the suite", worst)
    names = [name for name in curves if not name.startswith("worst")]
    # One image of a few may be a matter of luck.
    if again and again[2] > max(1, _NOISE * again[1]):
        epsilon, tried, fooled = again
        lines.append(
            f"more restarts still gain: at ε={epsilon:g} the first attack, from another random start, fools {fooled} "
            f"of {tried} images that survived the whole suite; the worst case is worse than reported"
        )
    if names[-1].startswith("square"):
        before, after = (np.asarray(curves[name]["errors"]) for name in names[-2:])
        gain, i = max((gain, i) for i, gain in enumerate(after - before))
        if gain > _NOISE:
            lines.append(
                f"the black box beats the white box: at ε={worst['epsilons'][i]:g} Square Attack fools another "
                f"{gain:.1%} of the images after all attacks with gradients; gradients mislead those attacks"
            )
    return lines
