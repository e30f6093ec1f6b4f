"""Table of gradients besides the paper's: their alignments with every Δx, and further measures of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.cells import Cell, Row, Table, cell
from gradalign_jax.report.groups import grouped
from gradalign_jax.report.results import Classifier, as_measured_by, measurement, measurements

_SHARE = 0.3  # of the pixels: the column on removal shows the nearest share that was measured
_MEASURES = {
    "etmann": "|⟨x, g⟩| / |g|",
    "tangent_share": "in the tangent space %",
    "removal": f"accuracy % without {_SHARE:.0%} of the pixels",
    "noise_on": "noise on",
    "noise_off": "off the manifold",
}
_LEGEND = (
    "Mean ± sample standard deviation over seeds (number of seeds). Rows: gradients of Ψ_c̃ − Ψ_y at the same test "
    "images. Plain: at the image; smoothgrad: mean over noisy images; integrated: mean over the line from 0 to the "
    "image. ᾱ: mean cosine with each Δx. |⟨x, g⟩| / |g|: the alignment of Etmann et al., who take the gradient of the "
    "predicted class's logit, the row “predicted”. In the tangent space: mean share of |g|² in the tangent space of a "
    "generator's images at the projection of x; the row “random” has the share of a random vector. Accuracy without "
    "the pixels of largest |g|, which become the mean pixel: the classifier is not retrained, so compare with random "
    "pixels. Noise: mean change of the prediction (L1 of the softmax) by the longest Gaussian noise that was measured, "
    "in the tangent space and orthogonal to it."
)


def directions(classifiers: Sequence[Classifier]) -> Table:
    """Build the table, one row for each gradient of each group of classifiers."""
    by_row = defaultdict(list)
    for classifier in classifiers:
        if member := measured(classifier):
            by_row[classifier.run.dataset, classifier.method].append(member)
    members = [member for row in by_row.values() for member in row]
    names = ordered(name for member in members for row in _part(member, "alignment").values() for name in row)
    kept = [name for name in _MEASURES if any(_part(member, name.partition("_o")[0]) for member in members)]
    rows = []
    for key in [*(key for key in paper.TABLE_2 if key in by_row), *sorted(by_row.keys() - paper.TABLE_2.keys())]:
        label = f"{DATASET_NAMES.get(key[0], key[0])} · {METHOD_NAMES[key[1]]}"
        for group in grouped(by_row[key]):
            for i, gradient in enumerate(gradients(group.members)):
                cells = [_alignment(group.members, gradient, name) for name in names]
                cells += [_measure(group.members, gradient, name) for name in kept]
                note = "" if i else group.note  # once for all gradients
                rows.append(Row((*key, gradient), f"{label} · {gradient}", note, tuple(cells)))
    return Table(
        "directions",
        "Directions · Gradients, Δx and measures",
        ("dataset", "method", "gradient"),
        (*(f"alpha_{name}" for name in names), *kept),
        (*(f"ᾱ, {name}" for name in names), *(_MEASURES[name] for name in kept)),
        tuple(rows),
        _LEGEND,
    )


def measured(classifier: Classifier) -> Classifier | None:
    """Return a classifier with the measurement that compared most pairs of a gradient and a Δx; None if none did."""

    def pairs(source) -> int:
        table = (source.result.get("directions") or {}).get("alignment") or {}
        return sum(map(len, table.values()))

    best = max(measurements(classifier), key=pairs)
    return as_measured_by(classifier, best) if best.result.get("directions") else None


def _part(member: Classifier, name: str) -> Mapping[str, Any]:
    return measurement(member)["directions"].get(name) or {}


def ordered(names: Iterable[str]) -> list[str]:
    """Return the names without repetition, the plain gradient and the exact Δx before others, random ones last."""
    rank = {"plain": -2, "exact": -1, "predicted": 1, "random": 2}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, 0))


def gradients(members: Iterable[Classifier]) -> list[str]:
    """Return the names of the gradients of all measures, the plain one first."""
    parts = [_part(member, name) for member in members for name in ("alignment", "etmann", "tangent_share", "removal")]
    return ordered(name for part in parts for name in part)


def _alignment(members: Iterable[Classifier], gradient: str, name: str) -> Cell:
    return _cell([(_part(member, "alignment").get(gradient) or {}).get(name) for member in members])


def _measure(members: Iterable[Classifier], gradient: str, name: str) -> Cell:
    return _cell([_value(measurement(member)["directions"], gradient, name) for member in members])


def _cell(values: Sequence[float | None]) -> Cell:
    """Return a cell, "–" where nothing was measured: not every measure is of every row."""
    return Cell(text="–") if all(value is None for value in values) else cell(values, None)


def _value(found: Mapping[str, Any], gradient: str, name: str) -> float | None:
    """Return one measure of a gradient, None where it was not made; noise stands in the row of random directions."""
    if name.startswith("noise"):
        values = (found.get("noise") or {}).get(name.partition("_")[2])
        return values[-1] if values and gradient == "random" else None
    value = (found.get(name) or {}).get(gradient)
    if name == "removal" and value is not None:
        value = min(zip(found["removed"], value, strict=True), key=lambda pair: abs(pair[0] - _SHARE))[1]
    return value if value is None or name == "etmann" else 100 * value
