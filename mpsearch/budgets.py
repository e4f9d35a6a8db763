"""Budgets as limits on cost tables, and what a map costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mpsearch.cost import cost_models
from mpsearch.errors import UsageError
from mpsearch.protocols import CostModel
from mpsearch.registry import lookup
from mpsearch.search import merged, problem_of
from mpsearch.types import FLOAT, Budget, Format, Layers, Limit, Problem, Table


def parse_budgets(
    budgets: str | Budget | Iterable[str | Budget], costs: Mapping[str, CostModel] | None = None
) -> tuple[Budget, ...]:
    """At least one budget, on costs that exist."""
    if not isinstance(budgets, (str, Budget, Iterable)):
        raise UsageError(f"the budgets are {budgets!r}: expected a list such as ['bits<=4']")
    several = (budgets,) if isinstance(budgets, (str, Budget)) else tuple(budgets)
    if not several:
        raise UsageError("no budget given: name at least one, such as bits<=4")
    parsed = tuple(budget if isinstance(budget, Budget) else Budget.parse(budget) for budget in several)
    models = cost_models() if costs is None else costs
    for budget in parsed:
        if budget.cost == "latency" and "latency" not in models:
            raise UsageError(f"the budget {budget} needs measured times: give a table of layer,format,milliseconds")
        if budget.cost == "coded" and "coded" not in models:
            raise UsageError(f"the budget {budget} needs the weights: give the generator, or budget size instead")
        lookup("cost", models, budget.cost)
    return parsed


def limit_of(
    budget: Budget, layers: Layers, columns: Sequence[Format], costs: Mapping[str, CostModel] | None = None
) -> Limit:
    """The budget with its cost table and its absolute limit."""
    cost = lookup("cost", cost_models() if costs is None else costs, budget.cost)
    full = cost(layers, (FLOAT,))
    total = full.total(full.values[:, 0])
    if budget.relative and math.isnan(total):
        row = int(np.flatnonzero(np.isnan(full.values[:, 0]))[0])
        raise UsageError(
            f"{budget} is a share of the float generator, but the time of {layers[row].name},float is missing"
        )
    return Limit(budget, cost(layers, columns), budget.absolute(total), total)


def check_budgets(
    layers: Layers,
    formats: Sequence[Format],
    budgets: Sequence[Budget],
    costs: Mapping[str, CostModel] | None = None,
) -> None:
    """Raise ``InfeasibleBudget``, or whatever is wrong with the tables of the costs, before anything is measured."""
    models = cost_models() if costs is None else costs
    columns = layers.columns(formats)
    cells = np.where(layers.allowed(formats, columns), 0.0, np.nan)
    blank = Table(layers.units, columns, cells, np.zeros(cells.shape), "none", "none")
    limits = [limit_of(budget, layers, columns, models) for budget in budgets]
    reported_costs(limits, problem_of(blank, layers, limits), layers, models)


def reported_costs(
    limits: Sequence[Limit], problem: Problem, layers: Layers, costs: Mapping[str, CostModel]
) -> list[Limit]:
    """The budgets, and every other cost that is known of all choices, in the units of the problem.

    ``coded`` only where it is asked for: all weights in all formats are coded for it.
    """
    others = [name for name in costs if name not in {"coded", *(limit.budget.cost for limit in limits)}]
    found = [*limits, *(limit_of(Budget(name, math.inf), layers, problem.formats, costs) for name in others)]
    found = [replace(limit, costs=merged(limit.costs, layers)) for limit in found]
    return [limit for limit in found if not np.isnan(limit.costs.values[problem.allowed]).any()]


def size_of(bitmap: Mapping[str, Format], layers: Layers) -> int:
    """Predicted payload bytes of a map."""
    return int(cost_of("size", bitmap, layers))


def cost_of(
    cost: str, bitmap: Mapping[str, Format], layers: Layers, costs: Mapping[str, CostModel] | None = None
) -> float:
    """What a map costs; layers that it does not name are float. NaN where a time was not measured."""
    columns = tuple(dict.fromkeys([FLOAT, *bitmap.values()]))
    table = lookup("cost", cost_models() if costs is None else costs, cost)(layers, columns)
    picked = [columns.index(bitmap.get(layer.name, FLOAT)) for layer in layers]
    return table.total(table.values[np.arange(len(layers)), picked])
