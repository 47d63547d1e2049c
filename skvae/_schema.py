"""Which likelihood reads which column of a table, and what is learnt about every column."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skvae._statistics import ColumnStatistics
from skvae.likelihoods import Likelihood


@dataclass(frozen=True)
class Column:
    """One column of the training data: its name, its likelihood, and the map `(x - loc) / scale` to the model's units."""

    name: str
    kind: str
    loc: float
    scale: float
    constant: bool = False  # never varied, so it is left out of the model
    categories: tuple = ()  # that the codes 0, 1, ... stand for


class Schema(tuple):
    """The columns of the training data, in order; prints as a table."""

    def __repr__(self):
        width = max([len(c.name) for c in self[:20]] + [6])
        kinds = max([len(c.kind) for c in self[:20]] + [10])
        has_categories = any(c.categories for c in self[:20])
        title = f"{'column':<{width}}  {'kind':<{kinds}}  {'loc':>10}  {'scale':>10}"
        lines = [title + "  categories" if has_categories else title]
        for c in self[:20]:
            kind = "constant" if c.constant else c.kind
            line = f"{c.name:<{width}}  {kind:<{kinds}}  {c.loc:>10.4g}  {c.scale:>10.4g}"
            lines.append(f"{line}  {_listed(c.categories)}".rstrip())
        if len(self) > 20:
            lines.append(f"... and {len(self) - 20} more columns")
        return "\n".join(lines)


def _listed(categories: tuple) -> str:
    """Return categories on one line, the first ones where there are many."""
    shown = ", ".join(str(category) for category in categories[:4])
    return f"{shown}, ... ({len(categories)})" if len(categories) > 4 else shown


@dataclass(frozen=True, eq=False)
class Group:
    """Columns that one likelihood reads."""

    likelihood: Likelihood
    columns: np.ndarray  # their numbers in the table


def group_columns(likelihoods: Sequence[Likelihood], statistics: ColumnStatistics, keeps_constant: bool) -> list[Group]:
    """Return the groups of columns of equal likelihoods, which then know their columns; without those that never vary.

    A first batch of rows keeps columns that do not vary in it, unless it has no cell of them.
    """
    d = len(statistics.low)
    constant = ~(statistics.high > statistics.low)
    left_out = np.isnan(statistics.low) if keeps_constant else constant  # a column without a cell has no units either
    distinct: list[Likelihood] = []
    owner = np.empty(d, dtype=int)
    for j, likelihood in enumerate(likelihoods):
        same = next((i for i, other in enumerate(distinct) if other is likelihood or other == likelihood), None)
        if same is None:
            distinct.append(likelihood)
        owner[j] = len(distinct) - 1 if same is None else same
    several = len(distinct) > 1
    groups = []
    for i, likelihood in enumerate(distinct):
        dropped = left_out & (likelihood.drops_constant or several)
        columns = np.flatnonzero((owner == i) & ~dropped)
        if len(columns) or not several:
            groups.append(Group(likelihood.bind(statistics.take(columns)), columns))
    return groups or [Group(distinct[0], np.arange(0))]
