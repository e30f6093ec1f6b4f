"""What an evaluation should say against itself, in plain words (after the checks of AutoAttack).

Robustness is what the attacks tried did not break, so signs that they were weak belong beside every number.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

NAMES = {"pgd_linf": "PGD L∞", "pgd_l2": "PGD L2", "square_linf": "Square Attack"}
# Error rates that differ by less may do so by the attacks' random starts.
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
            f"ε50% under {name} is censored: its largest ε leaves the error at {errors[-1]:.1%}, under 51 %, and the "
            "number tells of that ε more than of the classifier"
        )
    elif errors[-1] < 1:
        lines.append(
            f"{name} at its largest ε={epsilons[-1]:g} leaves {1 - errors[-1]:.1%} of the images classified right: "
            "with an ε that large an attack should fool all"
        )
    return lines


def warnings(
    curves: Mapping[str, Mapping[str, Any]],
    zero_gradients: float | None = None,
    white_box: Sequence[float] | None = None,
    loss: str = "cross_entropy",
) -> list[str]:
    """Reasons to doubt an evaluation's numbers, a line each; none is good news.

    Args:
      curves: by attack (`pgd_linf`, `pgd_l2`, `square_linf`): `epsilons`, `errors`, and `censored` as
        `robustness.epsilon_half` says.
      zero_gradients: share of images on which the attack's loss has no gradient at all, or none that is finite.
      white_box: errors of PGD L∞ on the images and at the ε of `square_linf`; None takes its curve.
      loss: PGD's.
    """
    lines = []
    if zero_gradients and any(name.startswith("pgd") for name in curves):
        remedy = "believe Square Attack there" if loss == "margin" else "attack with the margin loss"
        lines.append(
            f"the attacks' loss has no gradient, zero or not a number, on {zero_gradients:.1%} of the images: PGD is "
            f"blind there, and its errors are too low; {remedy}"
        )
    clean = max((curve["errors"][0] for curve in curves.values()), default=0.0)
    if clean >= 0.5:
        lines.append(f"{clean:.1%} of the images are misclassified without an attack: ε50% is 0, whatever the attack")
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
