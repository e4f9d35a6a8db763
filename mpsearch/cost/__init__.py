"""Cost models: what every layer costs in every format. One method a file; no torch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from mpsearch.cost.bits import Bits
from mpsearch.cost.bops import Bops
from mpsearch.cost.coded import Coded
from mpsearch.cost.latency import Latency
from mpsearch.cost.memory import Memory
from mpsearch.cost.size import Size
from mpsearch.protocols import CostModel
from mpsearch.types import Format

# Those that need nothing but the layers; ``latency`` and ``coded`` join them where there are measurements.
COSTS: dict[str, type[CostModel]] = {"bits": Bits, "size": Size, "bops": Bops, "memory": Memory}


def cost_models(
    latency: str | Path | Latency | None = None, saved: Callable[[str, Format], int] | None = None
) -> dict[str, CostModel]:
    """Every cost model by name: ``latency`` where there is a table of it, ``coded`` where there are weights to code.

    Args:
        latency: measured milliseconds of every layer and format.
        saved: (layer, format) → bytes that entropy coding saves, :meth:`mpsearch.quant.WeightBank.saved`.
    """
    models: dict[str, CostModel] = {name: model() for name, model in COSTS.items()}
    if latency is not None:
        models["latency"] = latency if isinstance(latency, Latency) else Latency.read(latency)
    if saved is not None:
        models["coded"] = Coded(cache(saved))
    return models


__all__ = ["COSTS", "Bits", "Bops", "Coded", "Latency", "Memory", "Size", "cost_models"]
