"""Run a generator as it would run in production, and leave no trace of having done so."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError, NotFinite
from mpsearch.model.hooks import hooked_weights


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluation_flags(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule, each flag restored afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every parameter and buffer that the forward pass writes to is put back.

    Attention stays on its ordinary path: the fused kernel of ``nn.MultiheadAttention`` has no gradient and differs in
    the last bits between grad modes. A caller's ``inference_mode``, which would forbid gradients for good, is left;
    gradients are on inside, so ``no_grad`` goes within.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(False), evaluation_flags(model), _kept(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Whatever the forward pass writes, as some do even in evaluation mode (power iterations, counters), is undone."""
    slots: list[tuple[Any, Any]] = [(slot, dict(slot)) for m in model.modules() for slot in (m._parameters, m._buffers)]
    tensors = {id(t): t for _, before in slots for t in before.values() if t is not None}.values()
    with torch.no_grad():
        saved = [(t, t.data, t.detach().clone(), t.requires_grad, t.grad_fn) for t in tensors]
    attributes = [(m.__dict__, name, m.__dict__[name]) for m in model.modules() for name in hooked_weights(m)]
    try:
        yield
    finally:
        for slot, before in slots:
            if [(k, id(v)) for k, v in slot.items()] != [(k, id(v)) for k, v in before.items()]:
                slot.clear()
                slot.update(before)
        for tensor, data, copy, requires_grad, grad_fn in saved:
            if tensor.grad_fn is not grad_fn:
                tensor.detach_()
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data
            if not torch.equal(tensor.detach(), copy):
                tensor.data.copy_(copy)
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        for namespace, name, value in attributes:
            namespace[name] = value


def first_tensor(output: Any) -> Tensor | None:
    """The image of an output: itself, or the first floating tensor of a tuple, mapping or output dataclass."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    elif hasattr(output, "__dict__") and not isinstance(output, (list, tuple)):
        output = list(vars(output).values())
    if isinstance(output, (list, tuple)):
        for part in output:
            if (found := first_tensor(part)) is not None:
                return found
    return None


def forward(model: nn.Module, batch: Sequence[Any], seed: int = 0) -> Tensor:
    """Run the generator on one tuple of positional arguments and return its images. Call inside :func:`evaluating`.

    Noise that the model draws itself comes from ``seed`` through a fork of the global generators, torch's, numpy's and
    Python's, so the float and the quantized model see the same, and the caller's random state is left as it was. The
    arguments are copied: some models write into their input.

    Raises:
        ModelError: the forward pass fails or returns no floating tensor.
        NotFinite: it returns NaN or infinite values.
    """
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _other_generators(seed):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at all other kinds of device: 0.2 ms
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        args = [arg.clone() if isinstance(arg, Tensor) else arg for arg in batch]
        try:
            output = first_tensor(model(*args))
        except Exception as error:  # whatever a user's model raises is a fact about that model
            shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in batch)
            raise ModelError(f"the generator fails on inputs of shape {shapes}: {one_line(error)}") from error
    if output is None:
        raise ModelError("the generator returns no floating-point tensor")
    if output.ndim == 0 or output.numel() == 0:
        raise ModelError(f"the generator returns a tensor of shape {tuple(output.shape)}: expected a batch of images")
    if not bool(torch.isfinite(output.detach()).all()):
        bad = int((~torch.isfinite(output.detach())).sum())
        raise NotFinite(f"the generator returns {bad} NaN or infinite values of {output.numel()}")
    return output


@contextmanager
def _other_generators(seed: int) -> Iterator[None]:
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
