"""The only module that reaches into the caller's ``nn.Module``: run it, read weights, put others in their place.

Nothing here changes a parameter, a buffer or ``state_dict``. A weight is replaced by *shadowing*: a plain parameter by
an attribute of the same name in the module's ``__dict__`` (which Python finds before ``nn.Module.__getattr__``), a
parametrized tensor by one more parametrization, a tensor computed by a forward hook by one more hook. Undoing it is
deleting the shadow, so restoration is bit-exact by construction, also after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.errors import ModelError, UsageError

NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm,
)  # fmt: skip
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")


def split_name(name: str) -> tuple[str, str]:
    """``a.b.weight`` → (``a.b``, ``weight``)."""
    path, _, tensor = name.rpartition(".")
    return path, tensor


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the tensor called ``name``, and the tensor's name in it."""
    path, tensor = split_name(name)
    try:
        return model.get_submodule(path), tensor
    except AttributeError:
        raise UsageError(f"the model has no module {path!r}, named by layer {name!r}") from None


def weight_names(module: nn.Module) -> list[str]:
    """Names of the tensors of ``module`` that can be quantized: ``weight`` or ``*_weight`` of two dimensions or more.

    Covers plain parameters, parametrized ones (``torch.nn.utils.parametrizations``), and tensors computed by the
    older forward hooks of ``spectral_norm`` and ``weight_norm``. Normalisation layers are left alone.
    """
    if isinstance(module, (*NORMS, parametrize.ParametrizationList)):
        return []
    names = list(module._parameters)
    if parametrize.is_parametrized(module):
        names += [str(name) for name in module.parametrizations]  # type: ignore[union-attr]
    names += [hook.name for hook in _weight_hooks(module)]
    found = []
    for name in dict.fromkeys(names):
        if name != "weight" and not name.endswith("_weight"):
            continue
        tensor = effective_weight(module, name)
        if tensor is not None and tensor.ndim >= 2 and tensor.is_floating_point():
            found.append(name)
    return found


def _weight_hooks(module: nn.Module) -> list[Any]:
    return [h for h in module._forward_pre_hooks.values() if hasattr(h, "compute_weight") and hasattr(h, "name")]


def effective_weight(module: nn.Module, name: str) -> Tensor | None:
    """The weight that the forward pass uses, detached, computed without a power iteration."""
    with torch.no_grad(), evaluating(module):
        for hook in _weight_hooks(module):
            if hook.name == name:
                try:
                    value = hook.compute_weight(module, do_power_iteration=False)
                except TypeError:  # weight_norm has no power iteration
                    value = hook.compute_weight(module)
                return value.detach()  # type: ignore[no-any-return]
        value = getattr(module, name)
    return None if value is None else value.detach()


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
    if isinstance(module, TRANSPOSED) and name == "weight":
        return 1
    return 1 if len(shape) == 5 and shape[0] == 1 and not isinstance(module, nn.Conv3d) else 0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule, each flag restored afterwards; attention on its ordinary path.

    The fused attention kernel of ``nn.MultiheadAttention`` has no second derivative, is invisible to the flop counter
    and differs in the last bits between grad modes, so float and quantized runs both avoid it.
    """
    flags = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in flags:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in flags:
            module.training = flag


def first_tensor(output: Any) -> Tensor | None:
    """The image of an output: itself, or the first floating tensor of a tuple, mapping or output dataclass."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    elif hasattr(output, "__dict__") and not isinstance(output, (list, tuple)):
        output = list(vars(output).values())
    if isinstance(output, (list, tuple)):
        for part in output:
            if (found := first_tensor(part)) is not None:
                return found
    return None


def forward(model: nn.Module, batch: Sequence[Any], seed: int = 0) -> Tensor:
    """Run the generator on one tuple of positional arguments and return its images.

    Noise that the model draws itself comes from ``seed`` through a fork of torch's global generator, so the float and
    the quantized model see the same, and the caller's random state is left as it was. Call inside :func:`evaluating`.

    Raises:
        ModelError: the forward pass fails, returns no floating tensor, or returns NaN or infinite values.
    """
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            output = first_tensor(model(*batch))
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in batch)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"the generator fails on inputs of shape {shapes}: {reason}") from error
    if output is None:
        raise ModelError("the generator returns no floating-point tensor")
    if output.ndim == 0 or output.numel() == 0:
        raise ModelError(f"the generator returns a tensor of shape {tuple(output.shape)}: expected a batch of images")
    if not bool(torch.isfinite(output.detach()).all()):
        bad = int((~torch.isfinite(output.detach())).sum())
        raise ModelError(f"the generator returns {bad} NaN or infinite values of {output.numel()}")
    return output


class _Fixed(nn.Module):
    """A parametrization that ignores what it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value = [value]  # in a list: neither a parameter nor a buffer, so state_dict stays as it was

    def forward(self, _: Tensor) -> Tensor:
        return self._value[0]


def shadow(module: nn.Module, name: str, value: Tensor) -> Callable[[], None]:
    """Make ``module.<name>`` be ``value`` until the returned function is called."""
    if parametrize.is_parametrized(module, name):
        chain = module.get_submodule(f"parametrizations.{name}")
        assert isinstance(chain, nn.ModuleList)
        chain.append(_Fixed(value))
        return lambda: chain.__delitem__(-1)
    if name in module._parameters:
        module.__dict__[name] = value
        return lambda: module.__dict__.pop(name, None)
    before = module.__dict__[name]
    module.__dict__[name] = value
    hook = module.register_forward_pre_hook(lambda m, _: m.__dict__.__setitem__(name, value))

    def undo() -> None:
        hook.remove()
        module.__dict__[name] = before

    return undo


def make_permanent(module: nn.Module, name: str, value: Tensor) -> None:
    """Make ``value`` the weight for good, in a copy that is ours to change; a parametrized weight becomes plain."""
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name)
    if name in module._parameters:
        with torch.no_grad():
            getattr(module, name).copy_(value)
    else:
        shadow(module, name, value.to(device_of(module)))


@contextmanager
def substituted(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the named weights are the given tensors (which may require gradients)."""
    with ExitStack() as stack:
        for name, value in weights.items():
            stack.callback(shadow(*owner(model, name), value))
        yield


@contextmanager
def inputs_mapped(model: nn.Module, maps: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the context ``maps[layer]`` is applied to what the owner of ``layer`` reads.

    That is its first floating tensor argument (the style of a modulated convolution is left alone), and query, key and
    value of ``nn.MultiheadAttention``.
    """
    with ExitStack() as stack:
        for name, function in maps.items():
            stack.callback(map_input(owner(model, name)[0], function))
        yield


def map_input(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Apply ``function`` to what ``module`` reads, until the returned function is called."""
    return module.register_forward_pre_hook(_input_hook(function), with_kwargs=True).remove


def _input_hook(function: Callable[[Tensor], Tensor]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        count = 3 if isinstance(module, nn.MultiheadAttention) else 1
        named: list[int | str] = [*range(len(args)), *kwargs]
        values = [*args, *kwargs.values()]
        spots = [s for s, v in zip(named, values, strict=True) if isinstance(v, Tensor) and v.is_floating_point()]
        new_args, new_kwargs = list(args), dict(kwargs)
        seen: dict[int, Tensor] = {}  # self-attention passes one tensor three times and must get one back
        for spot in spots[:count]:
            value = args[spot] if isinstance(spot, int) else kwargs[spot]
            mapped = seen.setdefault(id(value), value) if id(value) in seen else function(value)
            seen[id(value)] = mapped
            if isinstance(spot, int):
                new_args[spot] = mapped
            else:
                new_kwargs[spot] = mapped
        return tuple(new_args), new_kwargs

    return hook
