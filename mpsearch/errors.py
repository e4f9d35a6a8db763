"""The five ways in which mpsearch refuses: one clear line each, naming the number and the nearest fix."""

from __future__ import annotations


class MpsearchError(Exception):
    """Base of every error that mpsearch raises on purpose; the command line prints it and exits with 2."""


class UsageError(MpsearchError):
    """An unknown name, a pattern that matches nothing, or an option out of range."""


class ModelError(MpsearchError):
    """A generator that cannot be worked on: no tensor out, NaN weights or outputs, a failing forward."""


class NotFinite(ModelError):
    """A generator whose images are NaN or infinite: what a training that diverges comes to."""


class CalibrationError(MpsearchError):
    """Inputs that cannot be used: none at all, no tensors in a batch, NaN values."""


class InfeasibleBudget(MpsearchError):
    """No bit map meets the budgets; the message says the smallest feasible value."""


class ArtifactError(MpsearchError):
    """A file or run folder that is truncated, foreign, or made for something else."""
