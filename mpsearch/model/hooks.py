"""Weights that a forward pre-hook computes: the older ``torch.nn.utils.spectral_norm`` and ``weight_norm``."""

from __future__ import annotations

from typing import Any

from torch import nn


def weight_hooks(module: nn.Module) -> dict[str, tuple[int, Any]]:
    """Name of the computed tensor → (key of the hook, hook)."""
    found = {}
    for key, hook in module._forward_pre_hooks.items():
        if hasattr(hook, "compute_weight") and hasattr(hook, "name"):
            found[hook.name] = (key, hook)
    return found


def hooked_weights(module: nn.Module) -> list[str]:
    """Names of the tensors that hooks compute, each an ordinary attribute of the module."""
    return [name for name in weight_hooks(module) if name in module.__dict__]
