"""Make the pictures of a found map better, without labels: the float generator is the teacher."""

from collections.abc import Mapping

from mpsearch.protocols import Recoverer
from mpsearch.recovery.adaround import AdaRound
from mpsearch.recovery.bias import BiasCorrection
from mpsearch.recovery.distil import Distil

RECOVERERS: Mapping[str, type[Recoverer]] = {"bias": BiasCorrection, "adaround": AdaRound, "distil": Distil}

__all__ = ["RECOVERERS", "AdaRound", "BiasCorrection", "Distil"]
