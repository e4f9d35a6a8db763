"""Estimators: damage of every layer in every format. One method a file."""

from mpsearch.protocols import Estimator
from mpsearch.sensitivity.fid_proxy import FidProxy
from mpsearch.sensitivity.hessian import Hessian
from mpsearch.sensitivity.one_pass import OnePass
from mpsearch.sensitivity.perturbation import Perturbation

ESTIMATORS: dict[str, type[Estimator]] = {
    "one-pass": OnePass,
    "perturbation": Perturbation,
    "hessian": Hessian,
    "fid-proxy": FidProxy,
}

__all__ = ["ESTIMATORS", "FidProxy", "Hessian", "OnePass", "Perturbation"]
