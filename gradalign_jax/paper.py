"""The paper's numbers as printed, its settings, and the names of its data sets, methods and quantities."""

import math
from typing import NamedTuple

RUNS = 5  # seeds behind each of the paper's means
METHODS = ("baseline", "align", "pgd")
ATTACK_STEPS = 40  # of PGD (A.1)
SQUARE_QUERIES = 5000  # of Square Attack (A.1)
SPHERES_SHAPE = (20, 25)  # Square Attack sees the 500 coordinates of Spheres as an image of this shape (section 3.3)

METHOD_NAMES = {"baseline": "baseline", "align": "L_α", "pgd": "PGD"}
DATASET_NAMES = {
    "spheres": "Spheres",
    "squares": "Squares",
    "squares32": "Squares32",
    "mnist35": "MNIST-3/5",
    "copd": "COPD",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}
QUANTITY_NAMES = {
    "accuracy": "accuracy %",
    "pgd_linf": "ε50% PGD L∞",
    "pgd_l2": "ε50% PGD L2",
    "square_linf": "ε50% Square L∞",
    "alpha_delta_x": "ᾱ_Δx",
    "alpha_x": "ᾱ_x",
}
GRADIENT_NAMES = {  # of Table S2: the function whose gradient is compared with x
    "alpha_x_target_label": "Ψ_c̃ − Ψ_y",
    "alpha_x_closest_predicted": "Ψ_c* − Ψ_m(x)",
    "alpha_x_label": "Ψ_y",
    "alpha_x": "Ψ_m(x)",
}
_CIFAR10 = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "boat", "truck")  # as Figure S6 has them
CLASS_NAMES = {  # other data sets have two classes, −1 and 1
    "mnist35": ("3", "5"),
    "mnist": tuple("0123456789"),
    "cifar10": _CIFAR10,
}


class Number(NamedTuple):
    """A printed number: its value, the standard deviation printed with it, and half a unit of its last digit."""

    text: str
    value: float
    sd: float | None
    rounding: float


# Accuracy in percent; ε50% under PGD L∞, PGD L2 and Square Attack; ᾱ_Δx; ᾱ_x. Mean ± standard deviation of 5 runs.
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
COLUMNS = tuple(QUANTITY_NAMES)

# Columns as in GRADIENT_NAMES
_TABLE_S2 = """
mnist    baseline  0.036  0.036  0.038  0.038
mnist    align     0.267  0.267  0.320  0.320
mnist    pgd       0.030  0.030  0.043  0.043
cifar10  baseline  0.008  0.008  0.008  0.008
cifar10  align     0.018  0.018  0.019  0.020
cifar10  pgd       0.029  0.029  0.031  0.031
"""
S2_COLUMNS = tuple(GRADIENT_NAMES)
# The alignments of a result, in its order
ALPHAS = ("alpha_delta_x", "alpha_x", "alpha_x_label", "alpha_x_target_label", "alpha_x_closest_predicted")

# Two random samples of Spheres, of classes −1 and 1: ‖x‖, ‖Δ̂x‖, ‖x̂′‖, ‖x′‖, sim(Δx, Δ̂x)
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

# Pearson's r of ε50% under PGD L∞ with ᾱ_Δx and with ᾱ_x, over PGD runs at 6 or 7 values of ε, 5 runs at each
_TABLE_3 = """
spheres  .818  .818
squares  .883  .870
mnist35  .861  .591
copd     .280  .656
mnist    .897  .185
cifar10  .996  .994
"""
T3_COLUMNS = ("alpha_delta_x", "alpha_x")

DATASETS = ("spheres", "squares", "mnist35", "copd", "mnist", "cifar10")
# Table S1: the ε of PGD training
EPSILON = {"spheres": 0.005, "squares": 0.2, "mnist35": 0.3, "copd": 0.006, "mnist": 0.3, "cifar10": 0.01}
# Batches per epoch and epochs of a run (Table S1 and the authors' code)
EPOCHS = {
    "spheres": (10_000, 80),
    **dict.fromkeys(("squares", "mnist35", "copd"), (200, 30)),
    "mnist": (843, 30),
    "cifar10": (351, 100),
}
STEPS = {dataset: batches * epochs for dataset, (batches, epochs) in EPOCHS.items()}
GAN_ITERATIONS = {"squares32": 25_000, "mnist": 125_000, "cifar10": 125_000}  # the authors' code
# Table S1: average hours of a run on a Titan V, Titan RTX or V100, which runs often shared
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
S1_DATASETS = ("spheres", "squares", "mnist35", "copd", "mnist", "cifar10", "squares32")
# Table S1 above the hours, one column for each of S1_DATASETS: images in each split, dimensions, share of class −1 in
# each split, ε and η of PGD, epochs, λ_α, λ_Regz, batch size
_TABLE_S1_SETUP = """
train       10,000,000/epoch  10,000   10,397  3,711    54,000  45,000   10,000
validation  200               200      1,155   596      6,000   5,000    200
test        1,000             1,000    1,902   950      10,000  10,000   1,000
dimensions  500               224×224  28×28   224×224  28×28   32×32×3  32×32
minus_train       ~50%        49.7%    53.1%   63%      -       -        49.7%
minus_validation  ~50%        50.5%    53.1%   49.8%    -       -        50.5%
minus_test        ~50%        48.6%    53.1%   58.2%    -       -        48.6%
epsilon     0.005             0.2      0.3     0.006    0.3     0.01     -
step_size   0.002             0.02     0.02    0.02     0.02    0.02     -
epochs      80                30       30      30       30      100      -
align       0.1               0.1      0.1     10       0.3     0.3      -
penalty     -                 -        -       -        1.5     0.03     0.03
batch_size  50                12       12      12       64      128      -
"""


def number(text: str) -> Number:
    """Parse "99.4±0.8" or ".307"; a mean printed as "100." has the digits of its standard deviation."""
    mean, _, sd = text.partition("±")
    decimals = len(mean.partition(".")[2]) or len(sd.partition(".")[2])
    return Number(text, float(mean), float(sd) if sd else None, 0.5 * 10.0**-decimals)


def _setup_number(text: str) -> Number:
    """Parse an entry of Table S1: "10,000,000/epoch", "~50%" or "224×224", whose value is the product."""
    plain = text.removeprefix("~").removesuffix("%").removesuffix("/epoch").replace(",", "")
    return Number(text, math.prod(map(float, plain.split("×"))), None, 0.0)


def _table(text: str, keys: int, columns: tuple[str, ...], parse=number) -> dict[tuple[str, ...], dict[str, Number]]:
    """Return the rows of a table above by their first `keys` words, without the cells "-"."""
    rows = {}
    for line in text.strip().splitlines():
        words = line.split()
        cells = zip(columns, words[keys:], strict=True)
        rows[tuple(words[:keys])] = {name: parse(word) for name, word in cells if word != "-"}
    return rows


TABLE_1 = _table(_TABLE_1, 1, T1_COLUMNS)
SECTION_3_2 = {key: row["similarity"] for (key,), row in _table(_SIMILARITY, 1, ("similarity",)).items()}
SIMILARITY = {key: (cell.value, cell.sd) for key, cell in SECTION_3_2.items()}
TABLE_2 = _table(_TABLE_2, 2, COLUMNS)
TABLE_3 = _table(_TABLE_3, 1, T3_COLUMNS)
TABLE_S2 = _table(_TABLE_S2, 2, S2_COLUMNS)
HOURS = _table(_TABLE_S1, 1, S1_COLUMNS)
TABLE_S1_SETUP = {key: row for (key,), row in _table(_TABLE_S1_SETUP, 1, S1_DATASETS, _setup_number).items()}


def class_name(dataset: str, label: int) -> str:
    """Return the paper's name of a class: "−1" and "1" for labels 0 and 1 of Spheres, Squares and COPD."""
    names = CLASS_NAMES.get(dataset, ("−1", "1"))
    return names[label] if 0 <= label < len(names) else str(label)


def numbers(dataset: str, method: str) -> dict[str, float]:
    """Return one row of Tables 2 and S2 under result.json's names, accuracy as a fraction; {} without such a row."""
    cells = TABLE_S2.get((dataset, method), {}) | TABLE_2.get((dataset, method), {})
    return {name: round(cell.value / 100, 6) if name == "accuracy" else cell.value for name, cell in cells.items()}
