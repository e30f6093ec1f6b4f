"""The paper's tables and figures from finished runs: `python -m gradalign_jax.report DIR... --output=OUT`.

    runs.py            finds result.json files and links runs to the runs behind their estimates of Δx
    checks.py          what a result file must look like
    arrays.py          reads pictures.npz and images.csv
    differences.py     how a run differs from the paper's, in words; the paper's values are in paper_settings.py
    results.py         joins a classifier with its evaluations
    groups.py          comparable runs, the rows of tables
    statistics.py      means, correlations, z
    cells.py           what a table is; tables.py lists all of them
    tables_*.py        of classifiers (2, 3, S2), directions, estimators of Δx, generators (1, section 3.2), setup (S1)
    formats.py         a table as Markdown, CSV and LaTeX; text.py escapes text and sets symbols
    style.py           what a figure is and how it looks; figures.py draws all of them
    figures_*.py       geometry (1-3), images (4-6, S1-S6), curves (7, S7, S8), directions, estimators
    page.py            one HTML page with everything

Works on result files alone and imports no JAX.
"""
