"""The only floor that reaches into the caller's ``nn.Module``: run it, read weights, put others in their place.

Nothing here leaves a trace: flags, parameters, buffers, attributes, hooks and random state are as before, also after an
error.
"""

from mpsearch.model.joins import input_axis, input_channels
from mpsearch.model.meter import Meter
from mpsearch.model.reading import input_tensors, inputs_mapped, map_input
from mpsearch.model.reuse import Reuse
from mpsearch.model.running import device_of, evaluating, evaluation_flags, first_tensor, forward, one_line
from mpsearch.model.weights import (
    channel_axis,
    copy_of,
    effective_weight,
    make_permanent,
    owner,
    state_keys,
    substituted,
    weight_names,
)

__all__ = [
    "Meter",
    "Reuse",
    "channel_axis",
    "copy_of",
    "device_of",
    "effective_weight",
    "evaluating",
    "evaluation_flags",
    "first_tensor",
    "forward",
    "input_axis",
    "input_channels",
    "input_tensors",
    "inputs_mapped",
    "make_permanent",
    "map_input",
    "one_line",
    "owner",
    "state_keys",
    "substituted",
    "weight_names",
]
