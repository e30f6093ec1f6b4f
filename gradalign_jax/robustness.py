"""ε50%: the perturbation size at which half of a data set is misclassified, from a curve of errors."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np


class EpsilonHalf(float):
    """An ε50% as a float, with its threshold.

    threshold: the error rate that is crossed at this ε: 0.5, or less if the curve never clearly passes 0.5.
    censored: true if the curve never clearly passes 0.5, so that the number describes the strongest setting of the
      attack rather than 50% error.
    """

    threshold: float
    censored: bool

    def __new__(cls, value: float, threshold: float, censored: bool) -> "EpsilonHalf":
        """Return `value` as a float with these attributes."""
        self = super().__new__(cls, value)
        self.threshold, self.censored = threshold, censored
        return self

    def __getnewargs__(self) -> tuple[float, float, bool]:  # type: ignore[override]  # float's has one value
        """Return the arguments of `__new__`, for copies and pickles."""
        return float(self), self.threshold, self.censored


def _check(epsilons: Sequence[float], errors: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    eps, err = np.asarray(epsilons, float), np.asarray(errors, float)
    if eps.ndim != 1 or eps.shape != err.shape or not eps.size:
        raise ValueError(f"epsilons and errors must be equally long lists, got shapes {eps.shape} and {err.shape}")
    if not np.all(np.diff(eps) > 0):
        raise ValueError(f"epsilons must ascend, got {eps.tolist()}")
    if not np.all((err >= 0) & (err <= 1)):
        raise ValueError(f"errors must be rates between 0 and 1, got {err.tolist()}")
    # The authors' lists begin with the training error at ε = -1, which is not a point of this curve.
    if eps[-1] < 0:
        raise ValueError(f"epsilons must include a number >= 0, got {eps.tolist()}")
    return eps[eps >= 0], err[eps >= 0]


def epsilon_half(epsilons: Sequence[float], errors: Sequence[float]) -> EpsilonHalf:
    """Return the ε at which the error rate first reaches T = min(0.5, last error - 0.01), linearly interpolated.

    If the strongest attack leaves the error below 51%, T is the last error minus 1%, as in the authors' code, and the
    result is `censored`. The first crossing counts. A curve that starts at or above T gives 0.

    Args:
      epsilons: ascending, the first usually 0 (the clean error); negative entries are dropped.
      errors: error rates in [0, 1].

    Raises:
      ValueError: if the lists are empty or differ in length, ε does not ascend or has no entry >= 0, or an error is
        outside [0, 1].
    """
    eps, err = _check(epsilons, errors)
    last = float(err[-1])
    threshold = min(0.5, last - 0.01)
    censored = last - 0.01 < 0.5
    reached = np.flatnonzero(err >= threshold)
    if not reached.size or reached[0] == 0:
        return EpsilonHalf(0.0, threshold, censored)
    i = int(reached[0])
    fraction = (threshold - err[i - 1]) / (err[i] - err[i - 1])
    return EpsilonHalf(float(eps[i - 1] + fraction * (eps[i] - eps[i - 1])), threshold, censored)


def smallest_epsilon(epsilons: Sequence[float], wrong: np.ndarray) -> np.ndarray:
    """Return the smallest ε that fools each image, `[N]`; +inf where none does.

    Args:
      epsilons: ascending, `[E]`.
      wrong: bool `[E, N]`, the images that are misclassified at each ε.

    Raises:
      ValueError: if ε does not ascend or `wrong` does not have one row for each ε.
    """
    eps, wrong = np.asarray(epsilons, float), np.asarray(wrong, bool)
    if wrong.ndim != 2 or len(wrong) != len(eps) or not np.all(np.diff(eps) > 0):
        raise ValueError(
            f"epsilons must ascend, and wrong must have a row for each, got {eps.tolist()} and shape {wrong.shape}"
        )
    return np.where(wrong.any(0), eps[wrong.argmax(0)], np.inf)


def bracketed_epsilon_half(
    error_at: Callable[[float], float], epsilons: Sequence[float], guess: float | None = None
) -> tuple[EpsilonHalf, dict[float, float]]:
    """Return `epsilon_half` of a curve that is expensive to measure, from the few points that decide it.

    The interpolation uses two neighboring grid points. The search for them starts at `guess` (the best epoch's value)
    and proceeds in strides that double, then by bisection. On a monotone curve the result is that of the whole grid. If
    the measured points are not monotone, the whole grid is measured.

    Args:
      error_at: ε -> error rate; called at most once for each ε.
      epsilons: the ascending grid, including ε = 0 (no attack).
      guess: the expected ε50%.

    Returns:
      ε50% and the measured points {ε: error}, ascending.
    """
    grid = [float(e) for e in epsilons]
    measured: dict[int, float] = {}

    def error(i: int) -> float:
        if i not in measured:
            measured[i] = float(error_at(grid[i]))
        return measured[i]

    def bracket(threshold: float) -> tuple[int, int]:
        low = max((i for i in measured if measured[i] < threshold), default=0)
        return low, min((i for i in measured if i > low and measured[i] >= threshold), default=last)

    last = len(grid) - 1
    near = last if guess is None else int(np.clip(np.searchsorted(grid, guess), 1, last))
    # A point at or above 51% settles T = 0.5 without measuring the strongest attack.
    strongest = error(near) if error(near) >= 0.51 else error(last)
    threshold = min(0.5, strongest - 0.01)
    error(near - 1 if measured[near] >= threshold else near + 1)
    low, high = bracket(threshold)
    stride = 1
    while high - low > 1:
        middle = (low + high) // 2
        if guess is None:
            error(middle)
        elif near >= high:
            error(max(high - stride, middle))
        else:
            error(min(low + stride, middle))
        low, high = bracket(threshold)
        stride *= 2
    error(low)
    points = sorted(measured)
    if any(measured[a] > measured[b] for a, b in pairwise(points)):
        for i in range(len(grid)):
            error(i)
        points = sorted(measured)
    curve = {grid[i]: measured[i] for i in points}
    return epsilon_half(list(curve), list(curve.values())), curve
