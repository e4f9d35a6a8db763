"""Gradients by what a generator reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.model import one_line


def by_inputs(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``∂loss`` by every input; one that the loss does not depend on has gradient zero.

    Raises:
        ModelError: the forward pass cannot be differentiated.
    """
    try:
        found = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else ()
    except RuntimeError as error:
        raise ModelError(f"the generator cannot be differentiated by its inputs: {one_line(error)}") from error
    if all(grad is None for grad in found):
        raise ModelError("the generator's inputs have no gradient (torch.no_grad, detach?): they cannot be moved")
    return tuple(torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True))
