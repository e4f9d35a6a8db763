"""Estimators: damage of every layer in every format. One method a file."""

from mpsearch.protocols import Estimator
from mpsearch.sensitivity.fid_proxy import FidProxy
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.hessian import Hessian
from mpsearch.sensitivity.local import Local
from mpsearch.sensitivity.mask import Mask
from mpsearch.sensitivity.nuclear import Nuclear
from mpsearch.sensitivity.one_pass import OnePass
from mpsearch.sensitivity.orm import Orm
from mpsearch.sensitivity.pairwise import Pairwise
from mpsearch.sensitivity.perturbation import Perturbation
from mpsearch.sensitivity.primal_dual import PrimalDual
from mpsearch.sensitivity.signed import Signed
from mpsearch.sensitivity.slopes import channel_slopes, slopes
from mpsearch.sensitivity.strata import by_stratum

ESTIMATORS: dict[str, type[Estimator]] = {
    "one-pass": OnePass,
    "perturbation": Perturbation,
    "hessian": Hessian,
    "fid-proxy": FidProxy,
    "fisher": Fisher,
    "local": Local,
    "mask": Mask,
    "nuclear": Nuclear,
    "orm": Orm,
    "pairwise": Pairwise,
    "primal-dual": PrimalDual,
    "signed": Signed,
}

__all__ = [
    "ESTIMATORS",
    "FidProxy",
    "Fisher",
    "Hessian",
    "Local",
    "Mask",
    "Nuclear",
    "OnePass",
    "Orm",
    "Pairwise",
    "Perturbation",
    "PrimalDual",
    "Signed",
    "by_stratum",
    "channel_slopes",
    "slopes",
]
