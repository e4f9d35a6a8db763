"""Cost models: what every layer costs in every format. One method a file; no torch."""

from mpsearch.cost.bits import Bits
from mpsearch.cost.bops import Bops
from mpsearch.cost.size import Size
from mpsearch.protocols import CostModel

COSTS: dict[str, type[CostModel]] = {"bits": Bits, "size": Size, "bops": Bops}

__all__ = ["COSTS", "Bits", "Bops", "Size"]
