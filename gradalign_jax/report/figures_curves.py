"""Figures of measured numbers: ours over the paper's, 7, S7 and S8."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report import groups, statistics, suites
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.style import Figure, Inputs, Palette, few_ticks, panels
from gradalign_jax.report.tables_classifiers import CENSORED, correlation
from gradalign_jax.report.text import as_mathtext

ATTACKS = {"pgd_linf": "PGD L∞", "square_linf": "Square Attack L∞", "pgd_l2": "PGD L2"}
_WORST = {"pgd_linf": "linf", "pgd_l2": "l2"}  # the norm of the suite whose worst case is drawn with an attack
_MARKERS = dict(zip(DATASET_NAMES, "osvPD^X", strict=True))


def _present(inputs: Inputs) -> list[str]:
    names = {c.run.dataset for c in inputs.classifiers}
    return [name for name in DATASET_NAMES if name in names] + sorted(names - set(DATASET_NAMES))


def _name(dataset: str) -> str:
    return as_mathtext(DATASET_NAMES.get(dataset, dataset))


def _method_handles(palette: Palette, **style: float) -> list[plt.Line2D]:
    names = METHOD_NAMES.items()
    return [plt.Line2D([], [], color=getattr(palette, m), label=as_mathtext(name), **style) for m, name in names]


def _logarithmic(axis: plt.Axes, low: float, high: float) -> None:
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axis.set_box_aspect(1)
    few_ticks(axis.xaxis, low, high)
    few_ticks(axis.yaxis, low, high)


def draw_overview(inputs: Inputs, palette: Palette):
    """Draw every number of Table 2 but accuracy, ours over the paper's."""
    quantities = {name: heading for name, heading in paper.QUANTITY_NAMES.items() if name != "accuracy"}
    points = {name: [] for name in quantities}
    for (dataset, method), printed in paper.TABLE_2.items():
        for name in quantities:

            def has(classifier: Classifier, name: str = name) -> bool:
                return classifier.values[name] is not None

            members = groups.longest_trained(inputs.classifiers, dataset, method, has)
            mean, sd = statistics.mean_sd([m.values[name] for m in members if m.values[name] is not None])
            if mean is not None and mean > 0:
                points[name].append((dataset, method, printed[name], mean, sd or 0.0))
    if not any(points.values()):
        return None
    figure, axes = panels(1, len(quantities), 2.5, 2.9)
    for axis, (name, heading) in zip(axes[0], quantities.items(), strict=True):
        values = [v for _, _, number, mean, _ in points[name] for v in (number.value, mean)]
        _logarithmic(axis, min(values, default=0.1) / 1.8, max(values, default=1) * 1.8)
        axis.plot(axis.get_xlim(), axis.get_xlim(), color=palette.text, linewidth=0.8, linestyle=(0, (4, 3)))
        for dataset, method, number, mean, sd in points[name]:
            color = getattr(palette, method)
            bars = {"xerr": number.sd, "yerr": sd, "ecolor": color, "elinewidth": 0.8}
            axis.errorbar(number.value, mean, fmt=_MARKERS[dataset], color=color, markersize=5.5, **bars)
        axis.set(title=as_mathtext(heading), xlabel="paper")
        if not points[name]:
            axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=palette.faint)
    axes[0, 0].set_ylabel("ours")
    shown = sorted({dataset for group in points.values() for dataset, *_ in group}, key=list(DATASET_NAMES).index)
    handles = _method_handles(palette, linewidth=3)
    marker = {"color": palette.text, "linestyle": ""}
    handles += [plt.Line2D([], [], marker=_MARKERS[d], label=DATASET_NAMES[d], **marker) for d in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_robustness(inputs: Inputs, palette: Palette):
    """Draw Figure S8: accuracy over ε."""
    rows = {d: [groups.longest_trained(inputs.classifiers, d, m) for m in METHOD_NAMES] for d in _present(inputs)}
    datasets = [dataset for dataset, members in rows.items() if any(members)]
    if not datasets:
        return None
    figure, axes = panels(len(datasets), len(ATTACKS), 3.4, 2.25, sharey=True)
    any_worst = False
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, (attack, name) in zip(line, ATTACKS.items(), strict=True):

            def has(classifier, attack=attack):
                return attack in classifier.curves

            shown: list[float] = []  # every ε on the axis
            for method in METHOD_NAMES:
                members = groups.longest_trained(inputs.classifiers, dataset, method, has)
                color = getattr(palette, method)
                epsilons = _accuracy(axis, [m.curves[attack] for m in members if attack in m.curves], color)
                printed = paper.TABLE_2.get((dataset, method), {}).get(attack)
                if epsilons and printed:
                    axis.plot(printed.value, 50, "D", markerfacecolor="none", markeredgecolor=color, markersize=6.5)
                    shown.append(printed.value)
                if attack in _WORST:
                    worst = _worst_case(inputs.classifiers, dataset, method, _WORST[attack])
                    found = _accuracy(axis, worst, color, "s:")
                    any_worst |= bool(found)
                    shown += found
                shown += epsilons
            axis.axhline(50, color=palette.text, linewidth=0.7, linestyle=(0, (4, 3)))
            axis.set(title=f"{_name(dataset)} · {name}", ylim=(-3, 103))
            if shown:
                _epsilon_axis(axis, shown)
            else:
                axis.text(0.5, 0.65, "missing", transform=axis.transAxes, ha="center", color=palette.faint)
                axis.set_xticks([])
        line[0].set_ylabel("accuracy %")
    for axis in axes[-1]:
        axis.set_xlabel("ε, images in [−1, 1]")
    handles = _method_handles(palette)
    diamond = {"marker": "D", "markerfacecolor": "none", "linestyle": ""}
    handles.append(plt.Line2D([], [], color=palette.text, label=as_mathtext("ε50% in the paper"), **diamond))
    if any_worst:
        handles.append(plt.Line2D([], [], color=palette.text, marker="s", linestyle=":", label="worst case of a suite"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _worst_case(classifiers: Sequence[Classifier], dataset: str, method: str, norm: str) -> list[Mapping[str, Any]]:
    """Return the error curves of the first row of the table of suites with this norm, [] if there is none."""
    _, group = next(iter(suites.suite_groups(classifiers, dataset, method, norm)), (None, groups.Group()))
    return [suites.curves(member)["worst"] for member in group.members]


def _accuracy(axis, curves: Sequence[Mapping[str, Any]], color: str, line: str = "o-") -> list[float]:
    """Draw mean and range over seeds of one method's accuracy; return its ε, [] if there are no curves."""
    curves = [c for c in curves if c["epsilons"] == curves[0]["epsilons"]]
    if not curves:
        return []
    epsilons = np.asarray(curves[0]["epsilons"], float)
    accuracy = 100 * (1 - np.asarray([c["errors"] for c in curves], float))
    axis.fill_between(epsilons, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, linewidth=0)
    axis.plot(epsilons, accuracy.mean(0), line, color=color, markersize=3)
    return epsilons.tolist()


def _epsilon_axis(axis: plt.Axes, epsilons: Sequence[float]) -> None:
    """Make the horizontal axis linear from 0 to the smallest ε > 0, then logarithmic to a little beyond the largest."""
    smallest, largest = min(e for e in epsilons if e > 0), max(epsilons)
    axis.set_xscale("symlog", linthresh=smallest)
    axis.set_xlim(-smallest / 5, 1.1 * largest)
    few_ticks(axis.xaxis, smallest, largest)
    axis.set_xticks([0, *axis.get_xticks()])


def draw_series(inputs: Inputs, palette: Palette):
    """Draw Figure S7: alignment over robustness for PGD training at several ε."""
    series = {dataset: groups.pgd_series(inputs.classifiers, dataset) for dataset in _present(inputs)}
    series = {dataset: points for dataset, points in series.items() if len({p.epsilon for p in points}) > 1}
    if not series:
        return None
    columns = min(3, len(series))
    figure, axes = panels(-(-len(series) // columns), columns, 3.6, 3.2)
    for axis, (dataset, points) in zip(axes.flat, series.items(), strict=False):
        handles = []
        for alpha, color, kind in (("alpha_delta_x", palette.pgd, 1), ("alpha_x", palette.align, 2)):
            _series(axis, points, alpha, color, kind)
            label = _correlation_text(dataset, points, alpha)
            handles.append(plt.Line2D([], [], color=color, linewidth=3, label=as_mathtext(label)))
        axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7.5)
        axis.set(xlabel=as_mathtext(paper.QUANTITY_NAMES["pgd_linf"]), ylabel="alignment")
        axis.text(0.02, 0.97, _name(dataset), transform=axis.transAxes, va="top", weight="bold")
        axis.margins(0.12)
    for axis in axes.flat[len(series) :]:
        axis.set_axis_off()
    return figure


def _series(axis: plt.Axes, points: Sequence[Classifier], alpha: str, color: str, kind: int) -> None:
    """Draw a symbol for each classifier, † beside a censored one, and the line through the means of equal ε."""
    centers = []
    for spikes, epsilon in enumerate(sorted({p.epsilon for p in points}), 3):
        own = [p for p in points if p.epsilon == epsilon and p.values[alpha] is not None]
        x, y = [p.values["pgd_linf"] for p in own], [p.values[alpha] for p in own]
        axis.plot(x, y, linestyle="", marker=(spikes, kind, 0), markersize=9, color=color, alpha=0.85)
        for point in own:
            if point.is_censored("pgd_linf"):
                place = (point.values["pgd_linf"], point.values[alpha])
                axis.annotate("†", place, xytext=(4, 3), textcoords="offset points", fontsize=8)
        centers += [(np.mean(x), np.mean(y))] if own else []
    if centers:
        axis.plot(*zip(*centers, strict=True), color=color, linewidth=1)


def _correlation_text(dataset: str, points: Sequence[Classifier], alpha: str) -> str:
    """Return Pearson's r as in Table 3, beside the paper's."""
    printed = paper.TABLE_3.get((dataset,), {}).get(alpha)
    cell = correlation(points, alpha)
    value = f"{cell.values[0]:.3f}{'†' * cell.censored} (n = {cell.n})" if cell.values else "–"
    return f"{paper.QUANTITY_NAMES[alpha]}  r = {value}" + (f", paper {printed.text}" if printed else "")


def _scatter(member: Classifier) -> tuple[np.ndarray, np.ndarray] | None:
    """Return for each image the distances by Lemma 1 and by the attack, from an evaluation or the run itself."""
    for run in (*member.evaluations, member.run):
        found = run.result.get("linearity") or {}
        pairs = zip(found.get("approximated") or (), found.get("carlini_wagner") or (), strict=False)
        if present := [(abs(a), b) for a, b in pairs if a is not None and b is not None]:
            return tuple(np.asarray(present, float).T)
    return None


def draw_linearity(inputs: Inputs, palette: Palette):
    """Draw Figure 7: robustness against Carlini and Wagner's attack over the linear approximation of Lemma 1."""
    found = {}
    for dataset in _present(inputs):
        for method in METHOD_NAMES:
            members = groups.longest_trained(inputs.classifiers, dataset, method, _scatter)
            points = next((found for found in map(_scatter, members) if found is not None), None)
            if points is not None:
                found[dataset, method] = points
    if not found:
        return None
    datasets = [name for name in _present(inputs) if any((name, method) in found for method in METHOD_NAMES)]
    figure, axes = panels(len(datasets), len(METHOD_NAMES), 2.7, 2.6)
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, method in zip(line, METHOD_NAMES, strict=True):
            axis.set_title(f"{_name(dataset)} · {as_mathtext(METHOD_NAMES[method])}")
            if (dataset, method) not in found:
                axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", color=palette.faint)
                axis.set(xticks=[], yticks=[])
                continue
            x, y = found[dataset, method]
            axis.plot(x, y, ".", color=getattr(palette, method), markersize=3, alpha=0.6, rasterized=True)
            limit = 1.05 * max(np.quantile(x, 0.98), np.quantile(y, 0.98), 1e-12)
            axis.plot((0, limit), (0, limit), color=palette.text, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
        line[0].set_ylabel("distance by the attack, L2")
    for axis in axes[-1]:
        axis.set_xlabel("distance by Lemma 1, L2")
    return figure


OVERVIEW = Figure(
    "overview",
    "Ours beside the paper",
    "Each number of Table 2 but accuracy, ours over the paper's, with standard deviations where there are several "
    "seeds; on the dashed line they are equal. Where settings differ, the longest-trained runs with the number are "
    "shown.",
    draw_overview,
    "any classifier run",
)
FIGURE_7 = Figure(
    "figure7",
    "Figure 7 · The linear approximation",
    "Robustness against Carlini and Wagner's L2 attack over |ρ̃(x)|, the approximation of Lemma 1. Each point is a test "
    "image of one classifier; the dashed line is the identity; the axes span 98 % of the images.",
    draw_linearity,
    "an evaluation with the attack of Carlini and Wagner: configs/<data set>.py:evaluate, config.evaluate.cw_images",
)
FIGURE_S7 = Figure(
    "figureS7",
    "Figure S7 · Alignment over robustness, PGD training at several ε",
    "Each symbol is a classifier; more spikes mean a larger ε of training. Lines join the means of equal ε. r is "
    f"Pearson's, beside the paper's (Table 3). {CENSORED}",
    draw_series,
    "pgd runs at two or more config.attack.epsilon",
)
FIGURE_S8 = Figure(
    "figureS8",
    "Figure S8 · Accuracy over ε",
    "Test accuracy under three attacks: mean over seeds, and their range as a band. Diamonds: ε50% of the paper's "
    "Table 2. Dotted, with squares, beside PGD: the worst case over a suite of attacks. Where settings differ, the "
    "longest-trained runs with the curve are shown.",
    draw_robustness,
    "any classifier run; for Square Attack an evaluation",
)
