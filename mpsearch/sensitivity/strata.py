"""A table for every class or timestep."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.errors import UsageError
from mpsearch.protocols import Estimator
from mpsearch.subject import Subject
from mpsearch.types import Format, Table


def by_stratum(estimator: Estimator, subject: Subject, formats: Sequence[Format]) -> dict[str, Table]:
    """Damage in every stratum, the samples that share all whole numbers among their arguments (class, timestep).

    The tables, each weighted with its share of the samples, add up to that of the whole, up to the noise of estimators
    that draw. Activation ranges are those of the whole.

    Raises:
        UsageError: the arguments hold no whole number a sample.
    """
    strata = subject.calibration.strata()
    if not strata:
        raise UsageError("the inputs hold no class and no timestep: no argument is a whole number a sample")
    return {name: estimator(subject.part(rows), formats) for name, rows in strata.items()}
