"""All tables of a report."""

from collections.abc import Sequence

from gradalign_jax.report import (
    tables_classifiers,
    tables_directions,
    tables_estimators,
    tables_generators,
    tables_suite,
    tables_theory,
)
from gradalign_jax.report.cells import Table
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run
from gradalign_jax.report.tables_setup import table_s1


def all_tables(runs: Sequence[Run], classifiers: Sequence[Classifier]) -> list[Table]:
    """Build every table: the paper's main text first, then its supplement; tables without a row are left out."""
    tables = [
        tables_classifiers.table_2(classifiers),
        tables_classifiers.theorem_2(classifiers),
        tables_theory.theory(classifiers),
        tables_suite.robustness_by_suite(classifiers),
        tables_directions.directions(classifiers),
        tables_estimators.estimators(runs),
        tables_classifiers.table_3(classifiers),
        tables_generators.table_1(runs),
        tables_generators.similarities(runs),
        tables_generators.norms(runs),
        tables_generators.success(runs),
        table_s1(runs),
        tables_classifiers.table_s2(classifiers),
        tables_classifiers.accuracy_by_class(classifiers),
    ]
    return [table for table in tables if table.rows]
