"""Cost models: what every layer costs in every format. One method a file; no torch."""

from pathlib import Path

from mpsearch.cost.bits import Bits
from mpsearch.cost.bops import Bops
from mpsearch.cost.latency import Latency
from mpsearch.cost.memory import Memory
from mpsearch.cost.size import Size
from mpsearch.protocols import CostModel

# Those that need nothing but the layers; ``latency`` joins them where the user has measured it.
COSTS: dict[str, type[CostModel]] = {"bits": Bits, "size": Size, "bops": Bops, "memory": Memory}


def cost_models(latency: str | Path | Latency | None = None) -> dict[str, CostModel]:
    """Every cost model by name, with ``latency`` where there is a table of it."""
    models: dict[str, CostModel] = {name: model() for name, model in COSTS.items()}
    if latency is not None:
        models["latency"] = latency if isinstance(latency, Latency) else Latency.read(latency)
    return models


__all__ = ["COSTS", "Bits", "Bops", "Latency", "Memory", "Size", "cost_models"]
