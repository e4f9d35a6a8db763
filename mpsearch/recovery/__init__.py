"""Make the pictures of a found map better, without labels: the float generator is the teacher."""

from collections.abc import Mapping

from mpsearch.protocols import Recoverer
from mpsearch.recovery.adaround import AdaRound
from mpsearch.recovery.batch_norm import BatchNorm
from mpsearch.recovery.bias import BiasCorrection
from mpsearch.recovery.block_replace import BlockReplace
from mpsearch.recovery.blocks import Blocks
from mpsearch.recovery.distil import Distil
from mpsearch.recovery.equalise import Equalise
from mpsearch.recovery.incremental import Incremental
from mpsearch.recovery.primal_dual import PrimalDual
from mpsearch.recovery.range_tune import RangeTune
from mpsearch.recovery.realloc import Realloc
from mpsearch.recovery.scales import RangeSearch

RECOVERERS: Mapping[str, type[Recoverer]] = {
    "equalise": Equalise,
    "scales": RangeSearch,
    "bias": BiasCorrection,
    "batch_norm": BatchNorm,
    "adaround": AdaRound,
    "blocks": Blocks,
    "distil": Distil,
    "range_tune": RangeTune,
    "block_replace": BlockReplace,
    "incremental": Incremental,
    "primal_dual": PrimalDual,
    "realloc": Realloc,
}

__all__ = [
    "RECOVERERS",
    "AdaRound",
    "BatchNorm",
    "BiasCorrection",
    "BlockReplace",
    "Blocks",
    "Distil",
    "Equalise",
    "Incremental",
    "PrimalDual",
    "RangeSearch",
    "RangeTune",
    "Realloc",
]
