"""The paper's tables and figures from finished runs: `python -m gradalign_jax.report DIR... --output=OUT`.

    runs.py      finds and checks result.json files, links runs to those that made their estimates of Δx
    departures.py  in what a run differs from the paper's, in words; theirs.py has the paper's values
    results.py   joins a classifier with its evaluations
    groups.py    which runs are one row: of equal settings but for the seed
    tables.py    Tables 1, 2, 3, S1 and S2, the paper's numbers beside the measured ones
    formats.py   a table as Markdown, CSV and LaTeX
    curves.py    figures of numbers: 7, S7, S8
    pictures.py  figures of images: 4-6, S1-S6
    page.py      one HTML page with all of it

Works from files alone and imports no JAX.
"""
