"""The report's statistics: means, z, correlations, and how often z raises a false alarm."""

import math

import numpy as np
import pytest
from scipy import stats

from gradalign_jax import paper
from gradalign_jax.report import statistics

NORMAL = 2 * stats.norm.sf(2)  # 4.55 %


def as_z(t, freedom):
    """Return the normal quantile of t's tail probability, by SciPy's distributions."""
    return math.copysign(stats.norm.isf(stats.t.sf(abs(t), freedom)), t)


def test_z_pools_deviations_by_hand():
    values = [0.70, 0.72, 0.74]  # mean .72, sample deviation .02
    printed = paper.number(".659±.028")
    pooled = (2 * 0.02**2 + 4 * 0.028**2) / 6 * (1 / 3 + 1 / 5)
    variance = pooled + 0.0005**2 / 3
    expected = as_z((0.72 - 0.659) / math.sqrt(variance), 6 * (variance / pooled) ** 2)
    assert statistics.z_score(values, printed) == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < (0.72 - 0.659) / math.sqrt(variance)


def test_z_of_one_run_uses_the_papers_deviation_and_without_one_ours():
    pooled = 0.028**2 * 1.2
    variance = pooled + 0.0005**2 / 3
    one = statistics.z_score([0.7], paper.number(".659±.028"))
    assert one == pytest.approx(as_z(0.041 / math.sqrt(variance), 4 * (variance / pooled) ** 2))
    pooled = 0.0002 * 0.7  # our variance is .0002
    variance = pooled + 0.0005**2 / 3
    ours = statistics.z_score([0.04, 0.06], paper.number("0.036"))
    assert ours == pytest.approx(as_z(0.014 / math.sqrt(variance), (variance / pooled) ** 2))
    assert statistics.z_score([0.04], paper.number("0.036")) is None
    assert statistics.z_score([], paper.number(".659±.028")) is None


def test_a_deviation_printed_as_zero_is_half_a_unit_of_its_digit():
    pooled = 0.05**2 * 1.2
    variance = pooled + 0.05**2 / 3
    z = statistics.z_score([99.3], paper.number("99.4±0.0"))
    assert z == pytest.approx(as_z(-0.1 / math.sqrt(variance), 4 * (variance / pooled) ** 2))
    pooled = 0.0005**2 * 1.2
    variance = pooled + 0.0005**2 / 3
    finer = statistics.z_score([0.010], paper.number(".008±.000"))
    assert finer == pytest.approx(as_z(0.002 / math.sqrt(variance), 4 * (variance / pooled) ** 2))


@pytest.mark.parametrize("far", [1e3, 1e60, -1e60])
def test_z_of_a_far_number_is_finite(far):
    assert 5 < abs(statistics.z_of_t(far, 4)) <= 37.1
    assert math.copysign(1, statistics.z_of_t(far, 4)) == math.copysign(1, far)
    assert math.isfinite(statistics.z_of_t(far, 1e12))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("has_deviation", [True, False], ids=["paper_sd", "ours_alone"])
def test_false_alarms_come_at_the_rate_of_a_normal_z(n, has_deviation):
    """Ours and the paper's runs follow one law: |z| > 2 in 4.6 % of cells. (As a plain z: 12 % for n = 1, 29 %.)"""
    if n == 1 and not has_deviation:
        return
    cells, random = 20_000, np.random.default_rng(n)
    ours, theirs = 5 + 0.01 * random.normal(size=(cells, n)), 5 + 0.01 * random.normal(size=(cells, paper.RUNS))
    alarms = 0
    for values, runs in zip(ours, theirs, strict=True):
        sd = f"±{runs.std(ddof=1):.6f}" if has_deviation else ""
        z = statistics.z_score(values.tolist(), paper.number(f"{runs.mean():.6f}{sd}"))
        alarms += abs(z) > 2
    error = math.sqrt(NORMAL * (1 - NORMAL) / cells)
    assert abs(alarms / cells - NORMAL) < 4 * error  # 4.0 to 5.1 %


@pytest.mark.parametrize(("deviation", "low", "high"), [(0.004, 0.0, 0.056), (0.0005, 0.0, 0.056), (0.03, 0.03, 0.056)])
def test_false_alarms_are_not_more_where_the_paper_rounds_coarsely(deviation, low, high):
    """Printed with two decimals: a standard deviation that is below, near or above half a unit."""
    cells, random = 5000, np.random.default_rng(0)
    alarms = 0
    for center in random.uniform(0.4, 0.6, cells):
        values = center + deviation * random.normal(size=3)
        runs = center + deviation * random.normal(size=paper.RUNS)
        alarms += (
            abs(statistics.z_score(values.tolist(), paper.number(f"{runs.mean():.2f}±{runs.std(ddof=1):.2f}"))) > 2
        )
    assert low <= alarms / cells <= high


def test_pearson_is_numpys():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert statistics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert statistics.pearson([1, 2], [1, 2]) is None
    assert statistics.pearson([1, 1, 1], [1, 2, 3]) is None


def test_z_of_a_correlation_is_the_grouped_jackknifes_by_hand():
    a, b = np.random.default_rng(3).normal(size=(2, 12))
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    left_out = [np.arctanh(np.corrcoef(np.delete(a, s), np.delete(b, s))[0, 1])
                for s in (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12))]  # fmt: skip
    error = math.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2))
    t = (math.atanh(np.corrcoef(a, b)[0, 1]) - math.atanh(0.5)) / (error * math.sqrt(2))
    assert statistics.z_of_correlation(a, b, groups, 0.5) == pytest.approx(as_z(t, 3), rel=1e-9)
    assert statistics.z_of_correlation(a, b, [min(g, 2) for g in groups], 0.5) is None  # three groups
    assert statistics.z_of_correlation(a, a, groups, 0.5) is None


@pytest.mark.parametrize("groups", [4, 7])
@pytest.mark.parametrize(
    ("shared", "own", "trend"), [(0, 1, 0), (0, 1, 1), (0.3, 0.3, 1), (0.5, 0.1, 1), (1, 0.3, 0.5), (1, 0.1, 0)]
)
def test_false_alarms_of_correlations_do_not_exceed_a_normal_z(groups, shared, own, trend):
    """Five classifiers at each ε whose deviations are partly shared: |z| > 2 in at most 4.6 %.

    Fisher's z over all classifiers as if independent raises up to 55 % here, a bootstrap over ε up to 29 %.
    """
    trials, random = 400, np.random.default_rng(0)
    labels = np.repeat(np.arange(groups), 5)

    def draw():
        common = trend * np.linspace(-1, 1, groups) + shared * random.normal(size=(2, groups))
        return common[:, labels] + own * random.normal(size=(2, len(labels)))

    alarms = 0
    for _ in range(trials):
        (a, b), (c, d) = draw(), draw()
        alarms += abs(statistics.z_of_correlation(a, b, labels.tolist(), np.corrcoef(c, d)[0, 1])) > 2
    assert alarms / trials < NORMAL + 4 * math.sqrt(NORMAL * (1 - NORMAL) / trials)
