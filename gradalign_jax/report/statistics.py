"""Means, deviations, correlations, and how far a measured number lies from a printed one."""

import math
from collections.abc import Sequence

import numpy as np

from gradalign_jax import paper


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None where too few values define them."""
    if not values:
        return None, None
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(values) > 1 else None


def z_score(values: Sequence[float], printed: paper.Number | None) -> float | None:
    """Distance of our mean from the paper's, in units of what the seeds let one expect.

    The deviations of our n and of the paper's 5 runs are pooled into one, s, and

        z = (ours - paper) / sqrt(s² (1/n + 1/5) + h²/3),

    where h is half a unit of the last printed digit (a rounded number is uniform within it). A single run of ours is
    thus judged by the paper's deviation alone, a paper's number without one by ours. A deviation that the paper rounds
    to zero counts as half a unit of its last digit. None where neither is known.
    """
    ours, sd = mean_sd(values)
    if ours is None or printed is None or (sd is None and printed.sd is None):
        return None
    theirs = printed.sd
    if theirs is not None:
        digits = printed.text.partition("±")[2].partition(".")[2]
        theirs = max(theirs, 0.5 * 10.0 ** -len(digits))
    parts = [(len(values) - 1, sd), (paper.RUNS - 1, theirs)]
    known = [(freedom, deviation) for freedom, deviation in parts if deviation is not None]
    variance = sum(f * s**2 for f, s in known) / sum(f for f, _ in known)
    scale = math.sqrt(variance * (1 / len(values) + 1 / paper.RUNS) + printed.rounding**2 / 3)
    return (ours - printed.value) / scale


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation; None for fewer than three pairs or where one side does not vary."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def z_of_correlations(ours: float | None, n: int, theirs: float, m: int) -> float | None:
    """Distance of two correlations over n and m pairs after Fisher's transformation; None below four pairs."""
    if ours is None or n < 4 or m < 4 or abs(ours) >= 1:
        return None
    return (math.atanh(ours) - math.atanh(theirs)) / math.sqrt(1 / (n - 3) + 1 / (m - 3))
