"""Read the weights that a generator computes with, and put others in their place.

A weight is replaced by *shadowing*: a plain parameter or buffer by an attribute of the same name in the module's
``__dict__`` (which Python finds before ``nn.Module.__getattr__``), a parametrized tensor by one more parametrization, a
tensor computed by a forward hook by one more hook. Undoing it is deleting the shadow, so restoration is bit-exact by
construction, and ``state_dict`` never changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.errors import UsageError
from mpsearch.model.hooks import hooked_weights, weight_hooks
from mpsearch.model.running import evaluation_flags

NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm,
)  # fmt: skip
NAMED = re.compile(r"(.*_)?(weight|kernel)s?|weight_?[a-z0-9]+")
PARTS = ("_orig", "_u", "_v", "_g")  # of a weight that a hook computes
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the tensor called ``name``, and the tensor's name in it."""
    path, _, tensor = name.rpartition(".")
    try:
        return model.get_submodule(path), tensor
    except AttributeError:
        raise UsageError(f"the model has no module {path!r}, named by layer {name!r}") from None


def weight_names(module: nn.Module) -> list[str]:
    """Names of the tensors of ``module`` that can be quantized: weights or kernels of two dimensions or more.

    Covers plain parameters, parametrized ones (``torch.nn.utils.parametrizations``), tensors computed by the older
    forward hooks of ``spectral_norm`` and ``weight_norm``, and the ``weight_bar`` of the spectral-norm wrapper that
    most published Self-Attention GANs carry. Normalisation layers are left alone, and recurrent layers of many steps,
    which read their weights from a list of their own.
    """
    if isinstance(module, (*NORMS, nn.RNNBase, parametrize.ParametrizationList)):
        return []
    names = list(module._parameters)
    if parametrize.is_parametrized(module):
        names += [str(name) for name in module.parametrizations]  # type: ignore[union-attr]
    names += hooked_weights(module)
    found = []
    for name in dict.fromkeys(names):
        if not NAMED.fullmatch(name) or name.endswith(PARTS):
            continue
        tensor = effective_weight(module, name)
        if tensor is not None and tensor.ndim >= 2 and tensor.is_floating_point():
            found.append(name)
    return found


def effective_weight(module: nn.Module, name: str) -> Tensor | None:
    """The weight that the forward pass uses, detached, computed without a power iteration."""
    with evaluation_flags(module), torch.no_grad():
        if name not in (hooks := weight_hooks(module)):
            value = getattr(module, name)
            return None if value is None else value.detach()
        _, hook = hooks[name]
        try:
            return hook.compute_weight(module, do_power_iteration=False).detach()  # type: ignore[no-any-return]
        except TypeError:  # weight_norm has no power iteration
            return hook.compute_weight(module).detach()  # type: ignore[no-any-return]


def state_keys(module: nn.Module, name: str) -> list[str]:
    """Entries of ``module.state_dict()`` that hold the tensor ``name``: one, or all parts of a computed weight."""
    if parametrize.is_parametrized(module, name):
        prefix = f"parametrizations.{name}."
        return [key for key in module.state_dict() if key.startswith(prefix)]
    if name in module._parameters:
        return [name]
    return [key for key in (f"{name}_orig", f"{name}_u", f"{name}_v", f"{name}_g") if key in module.state_dict()]


def channel_axis(module: nn.Module, name: str, shape: Sequence[int]) -> int:
    """The axis of output channels.

    1 for ConvTranspose, also when grouped (the axis then indexes the channels of one group), and for the
    ``(1, out, in, k, k)`` weights of modulated convolutions (StyleGAN2); 0 otherwise.
    """
    if isinstance(module, TRANSPOSED):
        return 1
    return 1 if len(shape) == 5 and shape[0] == 1 and not isinstance(module, nn.Conv3d) else 0


class _Fixed(nn.Module):
    """A parametrization that ignores what it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value = [value]  # in a list: neither a parameter nor a buffer, so state_dict stays as it was

    def forward(self, _: Tensor) -> Tensor:
        return self._value[0]


def _shadow(module: nn.Module, name: str, value: Tensor) -> Callable[[], None]:
    """Make ``module.<name>`` be ``value`` until the returned function is called."""
    if parametrize.is_parametrized(module, name):
        chain = module.get_submodule(f"parametrizations.{name}")
        assert isinstance(chain, nn.ModuleList)
        chain.append(_Fixed(value))
        return lambda: chain.__delitem__(-1)
    if name in module._parameters or name in module._buffers:
        outer = module.__dict__.get(name)  # contexts may be nested
        module.__dict__[name] = value
        return lambda: module.__dict__.pop(name, None) if outer is None else module.__dict__.__setitem__(name, outer)
    before = module.__dict__[name]
    module.__dict__[name] = value
    hook = module.register_forward_pre_hook(lambda m, _: m.__dict__.__setitem__(name, value))

    def undo() -> None:
        hook.remove()
        module.__dict__[name] = before

    return undo


@contextmanager
def substituted(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the named weights and buffers are the given tensors (which may require gradients)."""
    with ExitStack() as stack:
        for name, value in weights.items():
            stack.callback(_shadow(*owner(model, name), value))
        yield


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the original, not even the generated classes of parametrized modules."""
    with ExitStack() as stack:
        for module in model.modules():  # what a hook left behind may hang on an autograd graph, which cannot be copied
            for name in hooked_weights(module):
                stack.callback(module.__dict__.__setitem__, name, module.__dict__[name])
                module.__dict__[name] = module.__dict__[name].detach()
        twin = copy.deepcopy(model)
    for module in twin.modules():
        if parametrize.is_parametrized(module):
            old = type(module)
            body = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(old.__name__, old.__bases__, body)
    return twin


def make_permanent(module: nn.Module, name: str, value: Tensor) -> None:
    """Make ``value`` the weight for good, a plain parameter, in a module of :func:`copy_of`."""
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name)
    elif name in (hooks := weight_hooks(module)):
        key, hook = hooks[name]
        hook.remove(module)
        del module._forward_pre_hooks[key]
    weight = getattr(module, name)
    if weight.shape != value.shape:
        raise ValueError(f"{name} is {tuple(value.shape)}, the model has {tuple(weight.shape)}")
    with torch.no_grad():
        weight.copy_(value)
    weight.requires_grad_(False)  # matrix products take other paths, with other last bits, where a gradient may come
