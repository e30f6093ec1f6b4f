"""The paper's own numbers, as it prints them, to stand beside measured ones."""

from typing import NamedTuple

RUNS = 5  # seeds behind each of the paper's means
METHODS = ("baseline", "align", "pgd")


class Number(NamedTuple):
    """One printed number: its value, the standard deviation printed with it, and half a unit of its last digit."""

    text: str
    value: float
    sd: float | None
    rounding: float


# Accuracy in per cent; ε50% under PGD L∞, PGD L2 and Square Attack; ᾱ_Δx; ᾱ_x. Mean ± deviation of 5 runs.
_TABLE_2 = """
spheres  baseline  99.4±0.8  0.0058±.0001  .099±.009   0.0063±.0004  .659±.028  .659±.028
spheres  align     100.±0.0  0.0076±.0002  .133±.001   0.0083±.0003  .886±.002  .886±.002
spheres  pgd       100.±0.0  0.0073±.0001  .126±.002   0.0080±.0001  .851±.001  .851±.001
squares  baseline  100.±0.0  0.031±.008    16.5±1.6    0.170±.041    .026±.007  .022±.006
squares  align     100.±0.0  0.435±.061    61.9±5.4    0.405±.001    .926±.004  .357±.009
squares  pgd       100.±0.0  0.501±.030    61.3±2.0    0.337±.011    .222±.042  .151±.051
mnist35  baseline  99.3±0.4  0.198±.012    2.36±.11    0.232±.010    .171±.029  .013±.003
mnist35  align     99.5±0.5  0.357±.011    3.88±.08    0.351±.009    .678±.078  .196±.010
mnist35  pgd       99.5±0.2  0.547±.007    4.20±.15    0.495±.005    .345±.018  .040±.032
copd     baseline  66.3±1.5  0.006±.0021   0.73±.33    0.021±.0063   .016±.005  .002±.0003
copd     align     64.2±5.4  0.020±.0047   2.91±.65    0.028±.0074   .163±.009  .064±.019
copd     pgd       64.7±2.7  0.063±.0294   4.97±2.4    0.072±.0324   .081±.007  .023±.013
mnist    baseline  99.2±0.2  0.171±.004    2.19±.06    0.188±0.003   .075±.006  .038±.005
mnist    align     99.2±0.1  0.325±.009    3.55±.06    0.308±0.007   .592±.009  .320±.009
mnist    pgd       99.4±0.0  0.554±.007    4.32±.07    0.489±0.001   .181±.012  .043±.008
cifar10  baseline  84.0±0.2  0.008±.0003   .23±.121    0.008±0.005   .008±.003  .008±.000
cifar10  align     81.1±0.6  0.012±.0006   .44±.023    0.016±0.001   .025±.002  .020±.002
cifar10  pgd       82.6±0.1  0.023±.0001   .77±.003    0.028±0.000   .041±.001  .031±.001
"""
COLUMNS = ("accuracy", "pgd_linf", "pgd_l2", "square_linf", "alpha_delta_x", "alpha_x")

# Ψ_c̃ - Ψ_y, Ψ_c* - Ψ_m, Ψ_y, Ψ_m
_TABLE_S2 = """
mnist    baseline  0.036  0.036  0.038  0.038
mnist    align     0.267  0.267  0.320  0.320
mnist    pgd       0.030  0.030  0.043  0.043
cifar10  baseline  0.008  0.008  0.008  0.008
cifar10  align     0.018  0.018  0.019  0.020
cifar10  pgd       0.029  0.029  0.031  0.031
"""
S2_COLUMNS = ("alpha_x_target_label", "alpha_x_closest_predicted", "alpha_x_label", "alpha_x")

# Two random samples of Spheres, classes -1 and 1: ‖x‖, ‖Δ̂x‖, ‖x̂'‖, ‖x'‖, sim(Δx, Δ̂x)
_TABLE_1 = """
0  1.0  .307  1.27  1.3  .858
1  1.3  .360  0.99  1.0  .898
"""
T1_COLUMNS = ("x", "delta", "generated", "other", "similarity")

# Section 3.2: sim(Δx, Δ̂x)
_SIMILARITY = """
spheres    .874±.019
squares    .893±.058
squares32  .661±.070
"""

# Pearson's r of ε50% under PGD L∞ with ᾱ_Δx and with ᾱ_x, over PGD runs at 6 or 7 values of ε, five each
_TABLE_3 = """
spheres  .818  .818
squares  .883  .870
mnist35  .861  .591
copd     .280  .656
mnist    .897  .185
cifar10  .996  .994
"""
T3_COLUMNS = ("alpha_delta_x", "alpha_x")
TABLE_3_RUNS = 30  # at least

DATASETS = ("spheres", "squares", "mnist35", "copd", "mnist", "cifar10")
# Table S1: the ε of PGD training
EPSILON = {"spheres": 0.005, "squares": 0.2, "mnist35": 0.3, "copd": 0.006, "mnist": 0.3, "cifar10": 0.01}
# Steps of a run: batches an epoch by epochs (Table S1 and the authors' code)
STEPS = {
    "spheres": 10_000 * 80,
    "squares": 200 * 30,
    "mnist35": 200 * 30,
    "copd": 200 * 30,
    "mnist": 843 * 30,
    "cifar10": 351 * 100,
}
# Table S1: average hours of a run on a Titan V, Titan RTX or V100 that it often shared
_TABLE_S1 = """
spheres    2.3   3     6.2   15.4  .3
squares    1.3   .8    1.5   2.5   6.3
mnist35    4.1   .1    3.7   3.1   8.8
copd       3.7   1     4.2   4.9   3.8
mnist      6.5   61.7  6.0   9.1   15.7
cifar10    15.5  54.7  13.1  27.0  17.1
squares32  -     3.2   -     -     -
"""
S1_COLUMNS = ("baseline", "generator", "align", "pgd", "square")


def number(text: str) -> Number:
    """Reads "99.4±0.8" or ".307"; a mean printed as "100." has the digits of its deviation."""
    mean, _, sd = text.partition("±")
    decimals = len(mean.partition(".")[2]) or len(sd.partition(".")[2])
    return Number(text, float(mean), float(sd) if sd else None, 0.5 * 10.0**-decimals)


def _table(text: str, keys: int, columns: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, Number]]:
    """Rows of a table above by their first `keys` words; "-" is left out."""
    rows = {}
    for line in text.strip().splitlines():
        words = line.split()
        cells = zip(columns, words[keys:], strict=True)
        rows[tuple(words[:keys])] = {name: number(word) for name, word in cells if word != "-"}
    return rows


TABLE_1 = _table(_TABLE_1, 1, T1_COLUMNS)
SECTION_3_2 = {key: row["similarity"] for (key,), row in _table(_SIMILARITY, 1, ("similarity",)).items()}
SIMILARITY = {key: (cell.value, cell.sd) for key, cell in SECTION_3_2.items()}
TABLE_2 = _table(_TABLE_2, 2, COLUMNS)
TABLE_3 = _table(_TABLE_3, 1, T3_COLUMNS)
TABLE_S2 = _table(_TABLE_S2, 2, S2_COLUMNS)
HOURS = _table(_TABLE_S1, 1, S1_COLUMNS)


def numbers(dataset: str, method: str) -> dict[str, float]:
    """What the paper reports for one row, by the names of result.json (accuracy as a fraction); {} if nothing."""
    cells = TABLE_S2.get((dataset, method), {}) | TABLE_2.get((dataset, method), {})
    return {name: round(cell.value / 100, 6) if name == "accuracy" else cell.value for name, cell in cells.items()}
