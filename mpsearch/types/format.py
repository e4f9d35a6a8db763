"""``Format``: one choice of representation for the weights and input activations of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Literal, get_args

from mpsearch.errors import UsageError

Kind = Literal["float", "fp16", "bf16", "fp8", "ternary", "twn", "int", "palette", "kernels"]
Activation = Literal["a", "d", "m"]
FLOAT_BITS = 32
TRIT_BITS = 1.6  # five of them a byte
FIXED: Mapping[str, float] = {
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "ternary": TRIT_BITS,
    "twn": TRIT_BITS,
}  # stored bits of a weight
LOOKED_UP_BITS = 16  # width of the numbers in a codebook, and of low-rank factors
_RUN = r"[2-8](?:\*\d{1,6})?"
_GRAMMAR = re.compile(
    rf"""(?:(?P<name>float|{"|".join(FIXED)})
      |w(?P<bits>[1-8])(?P<zero>z)?(?:g(?P<group>[1-9]\d{{0,5}}))?(?:r(?P<rank>[1-9]\d{{0,3}}))?
      |w\[(?P<runs>{_RUN}(?:,{_RUN})*)\]
      |p(?P<palette>[1-8])
      |k(?P<kernels>[1-9]|1[0-2])x(?P<side>[2-9]))?
      (?:(?P<letter>[adm])(?P<act>[468]))?""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Format:
    """One choice for a layer. ``str`` and :meth:`parse` are inverses; solvers see damage and costs alone.

    =====================  ==========================================================================================
    ``w4``                 symmetric integers on −7 … 7, one scale an output channel
    ``w2``, ``w3``         likewise; channels to which that is closer on ±½, ±1½ … steps, all codes used
    ``w4z``                integers with a zero point: one a scale
    ``w4g32``, ``w4zg32``  one scale for 32 weights of a channel
    ``w4r8``               integers, and what they leave over as a product of two factors of rank 8
    ``w[2*30,4,8*33]``     integers, one width an output channel
    ``ternary``            −a, 0 and b, both of every output channel's own, five weights a byte
    ``twn``                −a, 0 and a by the threshold of Ternary Weight Networks, five weights a byte
    ``p4``                 indices into a codebook of 16 values for the layer, one scale an output channel
    ``k8x3``               indices into a codebook of 256 kernels of 3×3 for the layer, one scale an output channel
    ``fp8``                E4M3, one scale an output channel
    ``fp16``, ``bf16``     half floats
    ``float``              kept as it is
    =====================  ==========================================================================================

    Behind any of them, or alone, the input activations are quantized as well, to 8, 6 or 4 bits:

    ======================  =========================================================================================
    ``a8``, ``a6``, ``a4``  on a range that is fitted to calibration inputs and stored
    ``d8``, ``d6``, ``d4``  every channel of a sample by its own mean and deviation, as it comes; nothing is stored
    ``m8``, ``m6``, ``m4``  every channel of a sample between its own extremes, as it comes; nothing is stored
    ======================  =========================================================================================

    Attributes:
        kind: family of the weights.
        bits: width of an integer (1 to 8) or of an index (palette 1 to 8, kernels 1 to 12) where there is one.
        act_bits: width of the input activations, 8, 6 or 4; None = float.
        channel_bits: one integer width an output channel, where they differ.
        zero: whether integers have zero points.
        group: weights of one output channel that share a scale; None = all.
        rank: of the factors beside the integers; 0 = none.
        side: of a square kernel in a codebook of kernels.
        act: how their range is found, where they are quantized.
    """

    kind: Kind = "float"
    bits: int | None = None
    act_bits: int | None = None
    channel_bits: tuple[int, ...] | None = None
    zero: bool = False
    group: int | None = None
    rank: int = 0
    side: int | None = None
    act: Activation = "a"

    @classmethod
    def of_channels(cls, widths: Iterable[int], act_bits: int | None = None) -> Format:
        """Integers with a width of its own for every output channel; the plain format where all are alike."""
        widths = tuple(map(int, widths))
        if not widths or not set(widths) <= set(range(2, 9)):
            raise UsageError(f"channel widths are {sorted(set(widths))}: use one of 2 … 8 for every output channel")
        if len(set(widths)) == 1:
            return cls("int", widths[0], act_bits)
        return cls("int", None, act_bits, widths)

    @classmethod
    def parse(cls, text: str) -> Format:
        """Read a format; ``UsageError`` names what is allowed."""
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) and text else None
        if match is None:
            raise UsageError(
                f"unknown format {text!r}: use w1 … w8 (w4z with zero points, w4g32 in groups, w4r8 with factors of "
                "rank 8), ternary, twn, p1 … p8, k8x3, fp8, bf16, fp16 or float, then a8, a6, a4 or nothing (w4a8); "
                "d8 or m8 for ranges of every channel, found as it runs"
            )
        act: Activation = next((kind for kind in get_args(Activation) if kind == match["letter"]), "a")
        return replace(cls._read(match), act_bits=int(match["act"]) if match["act"] else None, act=act)

    @classmethod
    def _read(cls, match: re.Match[str]) -> Format:
        """The weights."""
        if match["runs"]:
            runs = [run.split("*") for run in match["runs"].split(",")]
            return cls.of_channels([int(bits) for bits, *n in runs for _ in range(int(n[0]) if n else 1)])
        if match["bits"]:
            group = int(match["group"]) if match["group"] else None
            return cls("int", int(match["bits"]), None, None, bool(match["zero"]), group, int(match["rank"] or 0))
        if match["palette"]:
            return cls("palette", int(match["palette"]))
        if match["kernels"]:
            return cls("kernels", int(match["kernels"]), side=int(match["side"]))
        return cls(next((kind for kind in get_args(Kind) if kind == match["name"]), "float"))

    def __str__(self) -> str:
        act = self._activations()
        return act if act and self.kind == "float" else self._weights() + act

    def _activations(self) -> str:
        return f"{self.act}{self.act_bits}" if self.act_bits else ""

    def _weights(self) -> str:
        if self.kind == "int":
            group, rank = f"g{self.group}" if self.group else "", f"r{self.rank}" if self.rank else ""
            return f"w{self.bits or self._runs()}{'z' * self.zero}{group}{rank}"
        return {"palette": f"p{self.bits}", "kernels": f"k{self.bits}x{self.side}"}.get(self.kind, self.kind)

    def _runs(self) -> str:
        runs = [(bits, len(list(run))) for bits, run in groupby(self.channel_bits or ())]
        return f"[{','.join(str(bits) if n == 1 else f'{bits}*{n}' for bits, n in runs)}]"

    @property
    def short(self) -> str:
        """For people: as ``str``, but ``w3.25(2-6)`` for the mean of channels of 2 to 6 bits."""
        if self.channel_bits is None:
            return str(self)
        widths = f"{self.weight_bits:.2f}({min(self.channel_bits)}-{max(self.channel_bits)})"
        return f"w{widths}{self._activations()}"

    @property
    def weight_bits(self) -> float | None:
        """Stored bits of one weight, the mean where channels differ; None = float, left as it is.

        Scales, codebooks and factors are not in it: costs count them.
        """
        if self.channel_bits is not None:
            return sum(self.channel_bits) / len(self.channel_bits)
        if self.kind == "kernels":
            return (self.bits or 0) / (self.side or 1) ** 2
        return FIXED.get(self.kind, self.bits)

    @property
    def product_bits(self) -> float:
        """Width of the numbers that activations are multiplied by: an index into a codebook is looked up first."""
        return LOOKED_UP_BITS if self.kind in ("palette", "kernels") else self.weight_bits or FLOAT_BITS

    @property
    def plain(self) -> bool:
        """Symmetric integers of one width from 2 bits on, one scale a channel."""
        return self.weight_only == Format("int", self.bits) and (self.bits or 0) > 1

    @property
    def divisible(self) -> bool:
        """Whether output channels may each take a width of their own: plain integers, or a mixture of such."""
        return self.plain or self.channel_bits is not None

    @cached_property
    def weight_only(self) -> Format:
        """The same weights with float activations."""
        return replace(self, act_bits=None, act="a")

    def with_activations(self, other: Format) -> Format:
        """The same weights with the activations of another format."""
        return replace(self, act_bits=other.act_bits, act=other.act)

    @cached_property
    def act_only(self) -> Format:
        """The same activations with float weights."""
        return Format(act_bits=self.act_bits, act=self.act)

    @property
    def ranged(self) -> bool:
        """Whether activations are rounded on a range that is fitted beforehand and stored."""
        return self.act_bits is not None and self.act == "a"


FLOAT = Format()


def parse_formats(texts: Iterable[str | Format]) -> tuple[Format, ...]:
    """Parse a list of choices, keeping its order and dropping repeats; an empty list is a ``UsageError``."""
    if not isinstance(texts, Iterable):
        raise UsageError(f"the formats are {texts!r}: expected a list such as ['w4', 'w8']")
    texts = (texts,) if isinstance(texts, str) else texts
    parsed = [text if isinstance(text, Format) else Format.parse(text) for text in texts]
    if not parsed:
        raise UsageError("no formats given: name at least one, such as w4")
    return tuple(dict.fromkeys(parsed))


def activations_of(formats: Iterable[Format]) -> list[Format]:
    """All quantized activations in ``formats``, each once, alone and in a fixed order."""
    return sorted({format.act_only for format in formats if format.act_bits}, key=str)
