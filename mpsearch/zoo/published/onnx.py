"""Weights of an ONNX network: the few fields of its protocol buffers that hold them, and the order of its nodes.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import ArtifactError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}
FLOAT = 1
Value = int | memoryview


@dataclass(frozen=True)
class Node:
    """One operation, with the names of what it reads."""

    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """Operations in the order of the file, and float32 initializers by name."""

    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]


def read_onnx(data: bytes) -> OnnxGraph:
    """The graph of a model whose float32 weights lie inside the file.

    Raises:
        ArtifactError: truncated, or no ONNX model.
    """
    try:
        graphs = [_bytes(value) for field, value in _fields(memoryview(data)) if field == 7]
        nodes: list[Node] = []
        tensors: dict[str, Tensor] = {}
        for field, value in _fields(graphs[0]):
            if field == 1:
                nodes.append(_node(_bytes(value)))
            elif field == 5:
                tensors |= _tensor(_bytes(value))
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"no ONNX model, or a truncated one: {error}") from None
    return OnnxGraph(tuple(nodes), tensors)


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in SIZES:
            size = SIZES[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"{size} bytes wanted at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(number, place after it): seven bits a byte, the least first."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _node(message: memoryview) -> Node:
    kind, inputs = "", []
    for field, value in _fields(message):
        if field == 1:
            inputs.append(bytes(_bytes(value)).decode())
        elif field == 4:
            kind = bytes(_bytes(value)).decode()
    return Node(kind, tuple(inputs))


def _tensor(message: memoryview) -> dict[str, Tensor]:
    """The tensor by its name; nothing where it is not float32."""
    shape: list[int] = []
    name, raw, kind = "", memoryview(b""), 0
    for field, value in _fields(message):
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8:
            name = bytes(_bytes(value)).decode()
        elif field == 9:
            raw = _bytes(value)
    if kind != FLOAT:
        return {}
    if len(raw) != 4 * math.prod(shape):
        raise ValueError(f"{name} has {len(raw)} bytes inside the file for {math.prod(shape)} numbers")
    return {name: torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32)).reshape(shape)}
