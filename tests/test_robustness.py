"""ε50% on curves worked out by hand, and the bracketed search against the whole grid."""

import copy
import importlib
import pickle

import numpy as np
import pytest

from gradalign_jax import paper, robustness

# (epsilons, errors, ε50%, censored); T = min(0.5, last error - 0.01)
CURVES = [
    ((0, 1), (0.0, 1.0), 0.5, False),
    ((0, 2), (0.0, 1.0), 1.0, False),
    ((0, 1, 2), (0.0, 0.5, 1.0), 1.0, False),
    ((0, 1, 2), (0.0, 0.25, 0.75), 1.5, False),
    ((0, 1, 2), (0.1, 0.6, 1.0), 0.8, False),
    ((0, 0.1, 0.2, 0.4), (0.0, 0.1, 0.3, 0.7), 0.3, False),
    ((0, 1, 3), (0.0, 0.0, 0.51), 1 + 2 * 0.5 / 0.51, False),  # T = 0.5 exactly at 51 %
    ((0, 1, 3), (0.0, 0.1, 0.41), 1 + 2 * 0.3 / 0.31, True),  # T = 0.40
    ((0, 1), (0.0, 0.21), 0.2 / 0.21, True),
    ((0, 1, 2), (0.0, 0.3, 0.31), 1.0, True),  # T = 0.30 at a grid point
    ((0, 1, 2), (0.0, 0.305, 0.31), 0.3 / 0.305, True),
    ((0, 1, 2, 3), (0.0, 0.6, 0.4, 0.9), 0.5 / 0.6, False),  # the first of two crossings
    ((0, 1, 2, 3), (0.0, 0.4, 0.2, 0.8), 2.5, False),
    ((0, 1, 2), (0.0, 0.8, 0.3), 0.29 / 0.8, True),  # falls at the end: T follows the last entry
    ((0, 1, 2), (0.5, 0.7, 0.9), 0.0, False),  # clean error at the threshold
    ((0, 1, 2), (0.6, 0.7, 0.9), 0.0, False),  # and above
    ((0, 1, 2), (0.6, 0.4, 0.9), 0.0, False),  # above, and non-monotone
    ((0, 1), (0.3, 0.3), 0.0, True),  # the attack does nothing
    ((0, 1), (0.0, 0.0), 0.0, True),
    ((0, 1, 2), (0.0, 0.0, 0.02), 1.5, True),  # T = 0.01
    ((-1, 0, 1), (0.9, 0.0, 1.0), 0.5, False),  # the training error at ε = -1 is not part of the curve
    ((-1, 0, 1, 2), (0.0, 0.3, 0.4, 0.7), 4 / 3, False),
    ((0, 0.001, 0.6), (0.19, 0.49, 0.52), 0.001 + 0.599 * 0.01 / 0.03, False),
    ((0,), (0.2,), 0.0, True),
]


@pytest.mark.parametrize(("epsilons", "errors", "half", "censored"), CURVES, ids=str)
def test_hand_made_curves(epsilons, errors, half, censored):
    value = robustness.epsilon_half(epsilons, errors)
    assert isinstance(value, float)
    np.testing.assert_allclose(value, half, rtol=1e-9)
    assert value.censored is censored


@pytest.mark.parametrize(
    ("epsilons", "errors", "named"),
    [
        ((0, 1), (0.1,), "equally long"),
        ((0, 2, 1), (0, 0, 1), "ascend"),
        ((0, 1), (0, 1.5), "rates"),
        ((), (), "equally"),
        ((-1,), (0.1,), "must include a number >= 0"),
    ],
)
def test_wrong_curves_are_refused(epsilons, errors, named):
    with pytest.raises(ValueError, match=named):
        robustness.epsilon_half(epsilons, errors)


def test_half_survives_copies():
    half = robustness.epsilon_half([0, 1, 2], [0.0, 0.2, 0.4])
    for again in (copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
        assert (again, again.threshold, again.censored) == (half, half.threshold, True)


def test_bracketed_search_equals_the_whole_grid_on_monotone_curves():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        size = rng.integers(2, 14)
        epsilons = np.concatenate([[0], np.sort(rng.uniform(0.001, 1, size))])
        errors = np.sort(rng.uniform(0, rng.choice([0.3, 0.6, 1.0]), size + 1))
        curve, asked = dict(zip(epsilons, errors, strict=True)), []

        def error_at(epsilon, curve=curve, asked=asked):
            asked.append(epsilon)
            return curve[epsilon]

        guess = None if rng.uniform() < 0.3 else rng.uniform(0, 1)
        value, points = robustness.bracketed_epsilon_half(error_at, epsilons, guess)
        whole = robustness.epsilon_half(epsilons, errors)
        assert value == pytest.approx(whole, abs=1e-12)
        assert value.censored == whole.censored
        assert sorted(asked) == sorted(points)  # each measured once
        shares.append(len(points) / len(epsilons))
    assert np.mean(shares) < 0.6


def test_bracketed_search_measures_everything_where_the_curve_falls():
    epsilons, errors = (0, 1, 2, 3, 4), (0.0, 0.7, 0.3, 0.6, 0.55)
    curve = dict(zip(epsilons, errors, strict=True))
    value, points = robustness.bracketed_epsilon_half(curve.__getitem__, epsilons)
    assert len(points) == len(epsilons)
    assert value == robustness.epsilon_half(epsilons, errors)


def test_a_good_guess_needs_two_points():
    epsilons = (0, 1, 2, 3, 4, 5, 6)
    curve = dict(zip(epsilons, (0, 0.1, 0.2, 0.3, 0.6, 0.9, 1.0), strict=True))
    value, points = robustness.bracketed_epsilon_half(curve.__getitem__, epsilons, 3.5)
    assert set(points) == {3.0, 4.0}
    assert value == pytest.approx(3 + 0.2 / 0.3)


@pytest.mark.parametrize(("off", "most"), [(0, 3), (1, 4), (2, 5)])
def test_a_guess_that_is_off_by_some_points_needs_few(off, most):
    """On 11 ε, wherever the curve crosses; at most 4 of them if the guess is one grid point off."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        epsilons = np.arange(12.0)
        errors = np.sort(np.concatenate([rng.uniform(0, 1, 11), [1.0]]))
        crossing = int(np.argmax(errors >= 0.5))
        if crossing == 0:
            continue
        guess = np.clip(crossing - 0.5 + rng.choice([-off, off]), 0.5, 10.5)
        value, points = robustness.bracketed_epsilon_half(dict(zip(epsilons, errors, strict=True)).get, epsilons, guess)
        assert value == pytest.approx(robustness.epsilon_half(epsilons, errors))
        assert len(points) <= most


def test_the_papers_number_is_a_good_first_guess():
    """On the grids of the configs, for a curve that crosses up to a third above or below the paper's ε50%."""
    counts = []
    for dataset, method in paper.TABLE_2:
        config = importlib.import_module(f"configs.{dataset}").get_config(method)
        grid, expected = (0.0, *config.validate.epsilons), paper.numbers(dataset, method)["pgd_linf"]
        for factor in (0.7, 0.85, 1.0, 1.15, 1.3):
            curve = {epsilon: epsilon**2 / (epsilon**2 + (factor * expected) ** 2) for epsilon in grid}
            counts.append(len(robustness.bracketed_epsilon_half(curve.__getitem__, grid, expected)[1]))
    assert np.mean(counts) <= 3
