"""The paper's own numbers, to print beside measured ones (Tables 2 and S2; means over 5 runs)."""

# accuracy (a fraction here, per cent in the paper), ε50% under PGD L∞, PGD L2 and Square Attack, ᾱ_Δx, ᾱ_x
_COLUMNS = ("accuracy", "pgd_linf", "pgd_l2", "square_linf", "alpha_delta_x", "alpha_x")
_TABLE_2 = {
    ("spheres", "baseline"): (0.994, 0.0058, 0.099, 0.0063, 0.659, 0.659),
    ("spheres", "align"): (1.000, 0.0076, 0.133, 0.0083, 0.886, 0.886),
    ("spheres", "pgd"): (1.000, 0.0073, 0.126, 0.0080, 0.851, 0.851),
    ("squares", "baseline"): (1.000, 0.031, 16.5, 0.170, 0.026, 0.022),
    ("squares", "align"): (1.000, 0.435, 61.9, 0.405, 0.926, 0.357),
    ("squares", "pgd"): (1.000, 0.501, 61.3, 0.337, 0.222, 0.151),
    ("mnist35", "baseline"): (0.993, 0.198, 2.36, 0.232, 0.171, 0.013),
    ("mnist35", "align"): (0.995, 0.357, 3.88, 0.351, 0.678, 0.196),
    ("mnist35", "pgd"): (0.995, 0.547, 4.20, 0.495, 0.345, 0.040),
    ("copd", "baseline"): (0.663, 0.006, 0.73, 0.021, 0.016, 0.002),
    ("copd", "align"): (0.642, 0.020, 2.91, 0.028, 0.163, 0.064),
    ("copd", "pgd"): (0.647, 0.063, 4.97, 0.072, 0.081, 0.023),
    ("mnist", "baseline"): (0.992, 0.171, 2.19, 0.188, 0.075, 0.038),
    ("mnist", "align"): (0.992, 0.325, 3.55, 0.308, 0.592, 0.320),
    ("mnist", "pgd"): (0.994, 0.554, 4.32, 0.489, 0.181, 0.043),
    ("cifar10", "baseline"): (0.840, 0.008, 0.23, 0.008, 0.008, 0.008),
    ("cifar10", "align"): (0.811, 0.012, 0.44, 0.016, 0.025, 0.020),
    ("cifar10", "pgd"): (0.826, 0.023, 0.77, 0.028, 0.041, 0.031),
}
# Ψ_c̃ - Ψ_y, Ψ_c* - Ψ_m, Ψ_y
_S2_COLUMNS = ("alpha_x_target_label", "alpha_x_closest_predicted", "alpha_x_label")
_TABLE_S2 = {
    ("mnist", "baseline"): (0.036, 0.036, 0.038),
    ("mnist", "align"): (0.267, 0.267, 0.320),
    ("mnist", "pgd"): (0.030, 0.030, 0.043),
    ("cifar10", "baseline"): (0.008, 0.008, 0.008),
    ("cifar10", "align"): (0.018, 0.018, 0.019),
    ("cifar10", "pgd"): (0.029, 0.029, 0.031),
}
# sim(Δx, Δ̂x), mean and standard deviation over the test images (3.3)
SIMILARITY = {"spheres": (0.874, 0.019), "squares": (0.893, 0.058), "squares32": (0.661, 0.070)}

# sim(Δx, Δ̂x), mean and deviation (section 3.2)
SIMILARITY = {"spheres": (0.874, 0.019), "squares": (0.893, 0.058), "squares32": (0.661, 0.070)}


def numbers(dataset: str, method: str) -> dict[str, float]:
    """What the paper reports for one row, by the names that result.json uses; empty where it reports nothing."""
    rows = ((_COLUMNS, _TABLE_2), (_S2_COLUMNS, _TABLE_S2))
    return {
        name: value
        for names, table in rows
        for name, value in zip(names, table.get((dataset, method), ()), strict=False)
    }
