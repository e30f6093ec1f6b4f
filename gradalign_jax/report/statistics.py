"""Means, standard deviations, correlations, and the distance of a measured number from a printed one."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from gradalign_jax import paper

_SMALLEST = 1e-300  # tail probability; its z is 37


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation (n − 1), None where there are too few values."""
    if not values:
        return None, None
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(values) > 1 else None


def z_of_t(t: float, freedom: float) -> float:
    """Return the standard normal quantile with the tail probability of `t` under Student's distribution.

    Args:
      t: a statistic.
      freedom: its degrees of freedom.

    Returns:
      z, so that |z| > 2 has probability 0.046 for any degrees of freedom; at most 37 in magnitude.
    """
    tail = max(float(special.stdtr(freedom, -abs(t))), _SMALLEST)
    return math.copysign(-float(special.ndtri(tail)), t)


def z_score(values: Sequence[float], printed: paper.Number | None) -> float | None:
    """Return the distance of our mean from the paper's, as a z.

    The variances of our n runs and of the paper's 5 are pooled into s², which has n + 3 degrees of freedom, and

        t = (ours − paper) / sqrt(s² (1/n + 1/5) + h²/3),

    where h is half a unit of the last printed digit (a rounded number is uniform within it). One run of ours is thus
    judged by the paper's deviation alone (4 degrees of freedom), and a paper's number without a deviation by ours
    (n − 1). h²/3 is known exactly, so the degrees of freedom of the sum are Satterthwaite's: those of s² times the
    squared ratio of the whole variance to the part from s². t becomes a z of the same tail probability: if our runs
    and the paper's follow one normal law, |z| > 2 happens in 4.6 % of cells, for every n.

    A deviation that the paper prints as zero counts as half a unit of its last digit.

    Args:
      values: our numbers, one from each run.
      printed: the paper's number.

    Returns:
      z, or None where neither deviation is known.
    """
    ours, sd = mean_sd(values)
    if ours is None or printed is None or (sd is None and printed.sd is None):
        return None
    printed_sd = printed.sd
    if printed_sd is not None:
        digits = printed.text.partition("±")[2].partition(".")[2]
        printed_sd = max(printed_sd, 0.5 * 10.0 ** -len(digits))
    parts = [(len(values) - 1, sd), (paper.RUNS - 1, printed_sd)]
    present = [(freedom, deviation) for freedom, deviation in parts if deviation is not None]
    freedom = sum(f for f, _ in present)
    from_runs = sum(f * s * s for f, s in present) / freedom * (1 / len(values) + 1 / paper.RUNS)
    variance = from_runs + printed.rounding**2 / 3
    if not 0 < variance < math.inf:
        return None
    freedom = min(freedom * (variance / max(from_runs, 1e-150 * variance)) ** 2, 1e12)
    return z_of_t((ours - printed.value) / math.sqrt(variance), freedom)


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Pearson's correlation, None for fewer than three pairs or where one side does not vary."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else None


def z_of_correlation(
    a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], printed: float
) -> float | None:
    """Return the distance of our correlation over groups of pairs from the paper's, as a z.

    Pairs of one group (the classifiers of one ε) are not independent, so that the standard error of artanh r is the
    jackknife's that leaves out one group at a time. The paper's r is taken to have the same standard error; t has one
    degree of freedom fewer than there are groups, and becomes a z as in `z_score`.

    Args:
      a: one side of the pairs.
      b: the other side.
      groups: the group of each pair.
      printed: the paper's correlation.

    Returns:
      z, or None for fewer than four groups, or where a correlation is not defined or ±1.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    a, b, count = np.asarray(a, np.float64), np.asarray(b, np.float64), len(members)
    if count < 4:
        return None
    correlations = [pearson(np.delete(a, rows), np.delete(b, rows)) for rows in ([], *members.values())]
    if any(r is None or abs(r) >= 1 for r in correlations):
        return None
    whole, *others = np.arctanh(correlations)
    error = math.sqrt((count - 1) / count * float(np.sum((others - np.mean(others)) ** 2)))
    if error == 0:
        return None
    return z_of_t((float(whole) - math.atanh(printed)) / (error * math.sqrt(2)), count - 1)
