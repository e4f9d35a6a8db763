"""Tensors into a network, strictly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mpsearch.errors import ArtifactError


def fit(model: nn.Module, state: Mapping[str, Tensor], where: object) -> None:
    """Load ``state``; an ``ArtifactError`` about ``where`` lists the first names or shapes that do not fit."""
    own = model.state_dict(keep_vars=True)
    present = {own[key].data_ptr() for key in state if key in own}  # a tied tensor may be stored under one name only
    missing = [k for k in own if k not in state and own[k].data_ptr() not in present]
    unknown = [k for k in state if k not in own]
    shapes = {k: (state[k].shape, own[k].shape) for k in own if k in state and state[k].shape != own[k].shape}
    refuse_misfits(where, missing, unknown, shapes)
    model.load_state_dict(state, strict=False)


def refuse_misfits(
    where: object, missing: list[str], unknown: list[str], shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """An ``ArtifactError`` unless there is nothing to name; ``shapes`` are (stored, the model's)."""
    wrong = [f"{name} is missing" for name in missing]
    wrong += [f"{name} is unknown to the model" for name in unknown]
    wrong += [f"{name} is {tuple(stored)}, the model has {tuple(own)}" for name, (stored, own) in shapes.items()]
    if wrong:
        raise ArtifactError(f"{where} does not fit the model in {len(wrong)} entries: {'; '.join(wrong[:3])}")
