"""Find every quantizable tensor of a generator and measure what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mpsearch.errors import ModelError, UsageError
from mpsearch.model import (
    Meter,
    channel_axis,
    effective_weight,
    evaluating,
    forward,
    input_axis,
    input_channels,
    state_keys,
    weight_names,
)
from mpsearch.types import Floors, Layer, Layers, Pins, RangeFit, Together, matching, ruled


def find_layers(
    model: nn.Module,
    batch: Sequence[Any],
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    pin: Pins | None = None,
    floor: Floors | None = None,
    together: Together | None = None,
    channel_ranges: Iterable[str] = (),
    activation_ranges: RangeFit = "mse",
) -> Layers:
    """Every tensor called ``weight`` or ``*_weight`` with two dimensions or more, in module order.

    Args:
        model: any generator; left exactly as it was.
        batch: positional arguments of one forward pass, used to measure MACs (torch's flop counter) and input
            activation elements, both for one sample.
        include: globs of layer names to keep; a name counts under each of its tied aliases.
        exclude: globs of layer names to leave float; they then count as part of the rest.
        pin: glob → the one format of the layers that it matches.
        floor: glob → the fewest weight bits of the layers that it matches.
        together: lists of globs; the layers that one list matches share one format.
        channel_ranges: globs of layers whose input has an activation range for each of its channels; linear layers and
            convolutions can.
        activation_ranges: how activation ranges are fitted: ``mse`` = for the least squared rounding error, ``minmax``
            = to the extremes, 99.99 = so that so many percent of the values are inside, half of the rest on each side.

    Raises:
        UsageError: a glob matches no layer (the closest name is given), nothing is left, or rules contradict.
        ModelError: the forward pass fails, or a weight holds NaN or infinite values.
    """
    batch = (batch,) if isinstance(batch, Tensor) else batch
    _check_fit(activation_ranges)
    sites = find_sites(model)
    chosen = _select(sites, _globs(include), _globs(exclude))
    single = _matched(sites, _globs(channel_ranges))
    usage = _measure(model, batch, sites)
    sizes = _storage(model.state_dict(keep_vars=True))
    items = []
    for site in chosen:
        uses = [usage.get((id(module), tensor), _Usage()) for module, tensor in site.owners]
        items.append(
            Layer(
                name=site.names[0],
                kind=type(site.owners[0][0]).__name__.removeprefix("Parametrized"),
                shape=tuple(site.weight.shape),
                channel_axis=site.axis,
                macs=sum(use.macs for use in uses),
                act_elements=sum(use.act_elements for use in uses),
                float_bytes=sum(sizes.get(key, 0) for key in site.keys),
                state_keys=site.keys,
                aliases=site.names[1:],
                largest_input=max((use.largest_input for use in uses), default=0),
                input_parts=(_single_channels(site) if site in single else ()) or _input_parts(uses),
                range_fit=activation_ranges,
            )
        )
    layers = Layers(tuple(items), sum(sizes.values()) - sum(layer.float_bytes for layer in items))
    return ruled(layers, pin, floor, together)


@dataclass(frozen=True, eq=False)
class Site:
    """One quantizable tensor and everywhere it is used; found without running the model.

    Attributes:
        names: every name of the tensor; more than one when it is tied.
        places: one name for each distinct module that owns it (a module may itself be registered twice).
        owners: those modules, each with the tensor's name in it.
        weight: the tensor that the forward pass uses, detached.
        axis: of its output channels.
        keys: the ``state_dict`` entries that hold it.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    owners: tuple[tuple[nn.Module, str], ...]
    weight: Tensor
    axis: int
    keys: tuple[str, ...]

    @property
    def input_axis(self) -> int:
        """Axis of the channels of what the owners read."""
        return input_axis(self.owners[0][0]) or 1


@dataclass
class _Usage:
    macs: int = 0
    act_elements: int = 0
    largest_input: int = 0
    input_parts: tuple[int, ...] = ()


def _refuse_unfinished(model: nn.Module) -> None:
    """Modules whose weights cannot be put in place, with what to do about it."""
    for path, module in model.named_modules():
        name = path or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{name} is scripted, and its weights cannot be replaced: pass the Python module")
        if any(map(nn.parameter.is_lazy, module._parameters.values())):
            raise ModelError(f"{name} has weights without a shape yet: call the generator once before")
        if _pruned(module):
            raise ModelError(f"{name} is pruned by a hook: make that permanent first, torch.nn.utils.prune.remove")


def _pruned(module: nn.Module) -> bool:
    return any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())


def find_sites(model: nn.Module) -> list[Site]:
    """Tensors by identity of storage, so that tied weights (one tensor, several names) are one site.

    Raises:
        UsageError: there is none.
        ModelError: one holds NaN or infinite values.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, not a {type(model).__name__}")
    _refuse_unfinished(model)
    found: dict[Any, Site] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for tensor in weight_names(module):
            name = f"{path}.{tensor}" if path else tensor
            local = state_keys(module, tensor)
            value = effective_weight(module, tensor)
            assert value is not None  # weight_names lists only tensors that exist
            if not value.numel():  # nothing to quantize
                continue
            if not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                raise ModelError(f"{name} holds {bad} NaN or infinite values of {value.numel()}")
            source = module.state_dict(keep_vars=True)[local[0]]
            axis = channel_axis(module, tensor, value.shape)
            new = Site((), (), (), value, axis, ())
            identity = (source.data_ptr(), tuple(source.shape), source.stride())
            site = found.get(identity, new)
            fresh = all(module is not other for other, _ in site.owners)
            found[identity] = replace(
                site,
                names=(*site.names, name),
                places=(*site.places, name) if fresh else site.places,
                owners=(*site.owners, (module, tensor)) if fresh else site.owners,
                keys=(*site.keys, *(f"{path}.{key}" if path else key for key in local)),
            )
    if not found:
        raise UsageError("the model has no quantizable tensor (a 'weight' or '*_weight' of two dimensions or more)")
    return list(found.values())


def input_parts(model: nn.Module, batch: Sequence[Any], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Layer → channels of each tensor that its input is concatenated from, as in :class:`Layer`."""
    names = set(names)
    sites = [site for site in find_sites(model) if names & set(site.names)]
    usage = _measure(model, batch, sites)
    return {
        name: _input_parts([usage[id(module), tensor] for module, tensor in site.owners])
        for site in sites
        for name in names & set(site.names)
    }


def _check_fit(fit: Any) -> None:
    share = isinstance(fit, (int, float)) and not isinstance(fit, bool) and 50 <= fit <= 100
    if fit not in ("mse", "minmax") and not share:
        raise UsageError(f"activation_ranges is {fit!r}: use mse, minmax, or the percentage inside, such as 99.99")


def _globs(patterns: Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _select(sites: list[Site], include: tuple[str, ...], exclude: tuple[str, ...]) -> list[Site]:
    kept, left = _matched(sites, include), _matched(sites, exclude)
    chosen = [site for site in sites if site in kept and site not in left]
    if not chosen:
        raise UsageError(f"include {list(include)} and exclude {list(exclude)} leave no layer of {len(sites)}")
    return chosen


def _matched(sites: list[Site], patterns: tuple[str, ...]) -> set[Site]:
    """Those with a name that one of the patterns matches; each pattern must match one."""
    names = [name for site in sites for name in site.names]
    hits = set[str]().union(*(matching(pattern, names) for pattern in patterns))
    return {site for site in sites if hits & set(site.names)}


def _storage(state: dict[str, Any]) -> dict[str, int]:
    """Bytes of each ``state_dict`` entry, tied tensors counted once, under their first name."""
    seen: set[Any] = set()
    sizes: dict[str, int] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        identity = (value.data_ptr(), tuple(value.shape), value.stride())
        if value.numel() and identity in seen:
            continue
        seen.add(identity)
        sizes[key] = value.numel() * value.element_size()
    return sizes


def _measure(model: nn.Module, batch: Sequence[Any], sites: list[Site]) -> dict[tuple[int, str], _Usage]:
    """MACs and input elements of every site for one sample, from one forward pass with torch's flop formulas."""
    meter = Meter()
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for module in model.modules():
            for handle in meter.watch(module):
                stack.callback(handle.remove)
        with meter, meter.joins:
            output = forward(model, batch)
    samples = max(1, output.shape[0])
    users: dict[int, list[tuple[int, str, int]]] = {}
    for site in sites:
        for module, tensor in site.owners:
            entry = (id(module), tensor, site.weight.numel())
            users.setdefault(_user(model, module, meter), []).append(entry)
    usage: dict[tuple[int, str], _Usage] = {}
    for key, entries in users.items():
        macs, elements, largest = meter.seen.get(key, (0, 0, 0))
        total = sum(numel for *_, numel in entries)
        for who, tensor, numel in entries:
            share = round(macs * numel / total / samples)
            if who == key:
                parts = _common(meter.parts[who])
                usage[who, tensor] = _Usage(share, round(elements / samples), round(largest / samples), parts)
            else:
                usage[who, tensor] = _Usage(share)
    return usage


def _input_parts(uses: Sequence[_Usage]) -> tuple[int, ...]:
    return _common([use.input_parts for use in uses if use.act_elements])


def _single_channels(site: Site) -> tuple[int, ...]:
    """A range for each channel, if it is known where the owners have theirs."""
    counts = {(input_axis(module), input_channels(module)) for module, _ in site.owners}
    return (1,) * next(iter(counts))[1] if len(counts) == 1 else ()


def _common(divisions: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """How an input is divided, if it always is in the same way."""
    return divisions[0] if len(set(divisions)) == 1 else ()


def _user(model: nn.Module, module: nn.Module, meter: Meter) -> int:
    """Who runs the weights of ``module``: itself, or the closest ancestor that was called.

    ``nn.MultiheadAttention`` reads the weight of its output projection without ever calling that module.
    """
    path = next(name for name, other in model.named_modules() if other is module)
    while id(model.get_submodule(path)) not in meter.seen and path:
        path = path.rpartition(".")[0]
    return id(model.get_submodule(path))
