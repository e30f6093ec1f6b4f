"""Figures of numbers: measured beside printed, 7, S7 and S8."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from gradalign_jax import paper
from gradalign_jax.report import groups, statistics, tables
from gradalign_jax.report.ink import Figure, Ink, Material, few_ticks, panels, symbols
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.tables import METHODS, NAMES

ATTACKS = {"pgd_linf": "PGD L∞", "square_linf": "Square Attack L∞", "pgd_l2": "PGD L2"}
_MARKERS = dict(zip(NAMES, "osvPD^X", strict=True))


def _present(material: Material) -> list[str]:
    names = {c.run.dataset for c in material.classifiers}
    return [name for name in NAMES if name in names] + sorted(names - set(NAMES))


def _logarithmic(axis: plt.Axes, low: float, high: float) -> None:
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axis.set_box_aspect(1)
    few_ticks(axis.xaxis, low, high)
    few_ticks(axis.yaxis, low, high)


def draw_overview(material: Material, ink: Ink):
    """Every number of Table 2, ours over the paper's."""
    quantities = dict(zip(paper.COLUMNS[1:], tables.table_2(material.classifiers).headings[1:], strict=True))
    points = {name: [] for name in quantities}
    for (dataset, method), printed in paper.TABLE_2.items():
        for name in quantities:
            members = groups.longest(material.classifiers, dataset, method, lambda c, n=name: c.values[n] is not None)
            mean, sd = statistics.mean_sd([m.values[name] for m in members if m.values[name] is not None])
            if mean is not None and mean > 0:
                points[name].append((dataset, method, printed[name], mean, sd or 0.0))
    if not any(points.values()):
        return None
    figure, axes = panels(1, len(quantities), 2.5, 2.9)
    for axis, (name, heading) in zip(axes[0], quantities.items(), strict=True):
        values = [v for _, _, number, mean, _ in points[name] for v in (number.value, mean)]
        _logarithmic(axis, min(values, default=0.1) / 1.8, max(values, default=1) * 1.8)
        axis.plot(axis.get_xlim(), axis.get_xlim(), color=ink.text, linewidth=0.8, linestyle=(0, (4, 3)))
        for dataset, method, number, mean, sd in points[name]:
            color = getattr(ink, method)
            bars = {"xerr": number.sd, "yerr": sd, "ecolor": color, "elinewidth": 0.8}
            axis.errorbar(number.value, mean, fmt=_MARKERS[dataset], color=color, markersize=5.5, **bars)
        axis.set(title=symbols(heading), xlabel="paper")
        if not points[name]:
            axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=ink.faint)
    axes[0, 0].set_ylabel("ours")
    shown = sorted({dataset for group in points.values() for dataset, *_ in group}, key=list(NAMES).index)
    handles = [plt.Line2D([], [], color=getattr(ink, m), linewidth=3, label=symbols(METHODS[m])) for m in METHODS]
    handles += [plt.Line2D([], [], color=ink.text, marker=_MARKERS[d], linestyle="", label=NAMES[d]) for d in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_robustness(material: Material, ink: Ink):
    """Figure S8: accuracy over ε."""
    datasets = [d for d in _present(material) if any(groups.longest(material.classifiers, d, m) for m in METHODS)]
    if not datasets:
        return None
    figure, axes = panels(len(datasets), len(ATTACKS), 3.4, 2.25, sharey=True)
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, (attack, name) in zip(line, ATTACKS.items(), strict=True):

            def has(classifier, attack=attack):
                return attack in classifier.curves

            drawn = [
                _accuracy(axis, dataset, m, groups.longest(material.classifiers, dataset, m, has), attack, ink)
                for m in METHODS
            ]
            axis.axhline(50, color=ink.text, linewidth=0.7, linestyle=(0, (4, 3)))
            axis.set(title=f"{NAMES.get(dataset, dataset)} · {name}", ylim=(-3, 103))
            if not any(drawn):
                axis.text(0.5, 0.65, "missing", transform=axis.transAxes, ha="center", color=ink.faint)
                axis.set_xticks([])
        line[0].set_ylabel("accuracy %")
    for axis in axes[-1]:
        axis.set_xlabel("ε, images in [−1, 1]")
    handles = [plt.Line2D([], [], color=getattr(ink, m), label=symbols(METHODS[m])) for m in METHODS]
    diamond = {"marker": "D", "markerfacecolor": "none", "linestyle": ""}
    handles.append(plt.Line2D([], [], color=ink.text, label=symbols("ε50% in the paper"), **diamond))
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _accuracy(axis, dataset: str, method: str, members: Sequence[Classifier], attack: str, ink: Ink) -> bool:
    """Mean and range over seeds of one method's accuracy; whether there was any."""
    curves = [m.curves[attack] for m in members if attack in m.curves]
    curves = [c for c in curves if c["epsilons"] == curves[0]["epsilons"]]
    if not curves:
        return False
    epsilons = np.asarray(curves[0]["epsilons"], float)
    accuracy = 100 * (1 - np.asarray([c["errors"] for c in curves], float))
    color, smallest = getattr(ink, method), epsilons[epsilons > 0].min()
    axis.fill_between(epsilons, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, linewidth=0)
    axis.plot(epsilons, accuracy.mean(0), "o-", color=color, markersize=3)
    axis.set_xscale("symlog", linthresh=smallest)
    axis.set_xlim(-smallest / 5, None)
    few_ticks(axis.xaxis, smallest, epsilons[-1])
    axis.set_xticks([0, *axis.get_xticks()])
    printed = paper.TABLE_2.get((dataset, method), {}).get(attack)
    if printed:
        axis.plot(printed.value, 50, "D", markerfacecolor="none", markeredgecolor=color, markersize=6.5)
    return True


def draw_series(material: Material, ink: Ink):
    """Figure S7: alignment over robustness for PGD training at several ε."""
    series = {dataset: groups.pgd_series(material.classifiers, dataset) for dataset in _present(material)}
    series = {dataset: points for dataset, points in series.items() if len({p.epsilon for p in points}) > 1}
    if not series:
        return None
    columns = min(3, len(series))
    figure, axes = panels(-(-len(series) // columns), columns, 3.6, 3.2)
    for axis, (dataset, points) in zip(axes.flat, series.items(), strict=False):
        epsilons = sorted({p.epsilon for p in points})
        labels = []
        for alpha, color, kind in (("alpha_delta_x", ink.pgd, 1), ("alpha_x", ink.align, 2)):
            centres = []
            for spikes, epsilon in enumerate(epsilons, 3):
                mine = [p for p in points if p.epsilon == epsilon and p.values[alpha] is not None]
                x, y = [p.values["pgd_linf"] for p in mine], [p.values[alpha] for p in mine]
                axis.plot(x, y, linestyle="", marker=(spikes, kind, 0), markersize=9, color=color, alpha=0.85)
                centres += [(np.mean(x), np.mean(y))] if mine else []
            if centres:
                axis.plot(*zip(*centres, strict=True), color=color, linewidth=1)
            r, n = groups.correlation(points, alpha)
            printed = paper.TABLE_3.get((dataset,), {}).get(alpha)
            name = "ᾱ_Δx" if kind == 1 else "ᾱ_x"
            told = "–" if r is None else f"{r:.3f} (n = {n})"
            labels.append((f"{name}  r = {told}" + (f", paper {printed.text}" if printed else ""), color))
        handles = [plt.Line2D([], [], color=color, linewidth=3, label=symbols(label)) for label, color in labels]
        axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7.5)
        axis.set(xlabel=symbols("ε50% PGD L∞"), ylabel="alignment")
        axis.text(0.02, 0.97, NAMES.get(dataset, dataset), transform=axis.transAxes, va="top", weight="bold")
        axis.margins(0.12)
    for axis in axes.flat[len(series) :]:
        axis.set_axis_off()
    return figure


def _scatter(member: Classifier) -> tuple[np.ndarray, np.ndarray] | None:
    """Per image, the distance by Lemma 1 and the attack's, from an evaluation or the classifier's own run."""
    for run in (*member.evaluations, member.run):
        found = run.result.get("linearity") or {}
        pairs = zip(found.get("approximated") or (), found.get("carlini_wagner") or (), strict=False)
        if known := [(abs(a), b) for a, b in pairs if a is not None and b is not None]:
            return tuple(np.asarray(known, float).T)
    return None


def draw_linearity(material: Material, ink: Ink):
    """Figure 7: robustness against Carlini and Wagner's attack over the linear approximation of Lemma 1."""
    found = {}
    for dataset in _present(material):
        for method in METHODS:
            members = groups.longest(material.classifiers, dataset, method, _scatter)
            points = next((found for found in map(_scatter, members) if found is not None), None)
            if points is not None:
                found[dataset, method] = points
    if not found:
        return None
    datasets = [name for name in _present(material) if any((name, method) in found for method in METHODS)]
    figure, axes = panels(len(datasets), len(METHODS), 2.7, 2.6)
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, method in zip(line, METHODS, strict=True):
            axis.set_title(f"{NAMES.get(dataset, dataset)} · {symbols(METHODS[method])}")
            if (dataset, method) not in found:
                axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", color=ink.faint)
                axis.set(xticks=[], yticks=[])
                continue
            x, y = found[dataset, method]
            axis.plot(x, y, ".", color=getattr(ink, method), markersize=3, alpha=0.6, rasterized=True)
            limit = 1.05 * max(np.quantile(x, 0.98), np.quantile(y, 0.98), 1e-12)
            axis.plot((0, limit), (0, limit), color=ink.text, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
        line[0].set_ylabel("distance by the attack, L2")
    for axis in axes[-1]:
        axis.set_xlabel("distance by Lemma 1, L2")
    return figure


OVERVIEW = Figure(
    "overview",
    "Ours beside the paper",
    "Each number of Table 2, ours over the paper's, with deviations where there are several seeds; on the dashed line "
    "they are equal. Where settings differ, the runs trained longest that have the number are shown.",
    draw_overview,
    "any classifier run",
)
FIGURE_7 = Figure(
    "figure7",
    "Figure 7 · The linear approximation",
    "Robustness against Carlini and Wagner's L2 attack over |ρ̃(x)|, the approximation of Lemma 1; one test image a "
    "point, the identity dashed. One classifier of each row; the window holds 98 % of the images.",
    draw_linearity,
    "an evaluation with the attack of Carlini and Wagner: configs/<data set>.py:evaluate, config.evaluate.cw_images",
)
FIGURE_S7 = Figure(
    "figureS7",
    "Figure S7 · Alignment over robustness, PGD training at several ε",
    "One symbol a classifier, the more spikes the larger the ε of training; lines join the means of equal ε. Pearson's "
    "r beside the paper's (Table 3).",
    draw_series,
    "pgd runs at two or more config.attack.epsilon",
)
FIGURE_S8 = Figure(
    "figureS8",
    "Figure S8 · Accuracy over ε",
    "Test accuracy under three attacks: the mean over seeds, the band their range. Diamonds: the ε50% that the paper's "
    "Table 2 reports. Where settings differ, the runs trained longest that have the curve are shown.",
    draw_robustness,
    "any classifier run; Square Attack from :evaluate",
)
