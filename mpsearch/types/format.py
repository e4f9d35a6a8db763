"""``Format``: one choice of representation for the weights and input activations of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from mpsearch.errors import UsageError

_RUN = r"[2-8](?:\*\d{1,6})?"
_GRAMMAR = re.compile(
    rf"(?:(?P<kind>float|fp16)|w(?P<bits>[2-8])|w\[(?P<runs>{_RUN}(?:,{_RUN})*)\])?(?:a(?P<act>[468]))?"
)
FLOAT_BITS = 32


@dataclass(frozen=True)
class Format:
    """One choice for a layer: ``w4``, ``w4a8``, ``fp16``, ``fp16a8``, ``float``, ``a8``, ``w[2*30,4,8*33]a8``.

    ``str`` and :meth:`parse` are inverses. Solvers never look inside: they see damage and costs.

    Attributes:
        kind: ``int`` (symmetric, per output channel), ``fp16`` or ``float`` (kept as it is).
        bits: integer width of the weights, 2 to 8; None unless ``kind`` is ``int`` with one width.
        act_bits: width of the static affine input activations, 8, 6 or 4; None = float.
        channel_bits: one integer width an output channel, where they differ.
    """

    kind: Literal["int", "fp16", "float"] = "float"
    bits: int | None = None
    act_bits: int | None = None
    channel_bits: tuple[int, ...] | None = None

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
                f"unknown format {text!r}: use w2 … w8, fp16 or float, then a8, a6, a4 or nothing (w4, w4a8, fp16a8)"
            )
        act = int(match["act"]) if match["act"] else None
        if match["runs"]:
            runs = [run.split("*") for run in match["runs"].split(",")]
            return cls.of_channels([int(bits) for bits, *n in runs for _ in range(int(n[0]) if n else 1)], act)
        if match["bits"]:
            return cls("int", int(match["bits"]), act)
        return cls("fp16" if match["kind"] == "fp16" else "float", None, act)

    def __str__(self) -> str:
        weights = f"w{self.bits or self._runs()}" if self.kind == "int" else self.kind
        act = f"a{self.act_bits}" if self.act_bits else ""
        return act if act and weights == "float" else weights + act

    def _runs(self) -> str:
        runs = [(bits, len(list(run))) for bits, run in groupby(self.channel_bits or ())]
        return f"[{','.join(str(bits) if n == 1 else f'{bits}*{n}' for bits, n in runs)}]"

    @property
    def short(self) -> str:
        """For people: as ``str``, but ``w3.25(2-6)`` for the mean of channels of 2 to 6 bits."""
        if self.channel_bits is None:
            return str(self)
        act = f"a{self.act_bits}" if self.act_bits else ""
        return f"w{self.weight_bits:.2f}({min(self.channel_bits)}-{max(self.channel_bits)}){act}"

    @property
    def weight_bits(self) -> float | None:
        """Stored bits of one weight, the mean where channels differ; None = float, left as it is."""
        if self.channel_bits is not None:
            return sum(self.channel_bits) / len(self.channel_bits)
        return {"int": self.bits, "fp16": 16, "float": None}[self.kind]

    @property
    def weight_only(self) -> Format:
        """The same weights with float activations."""
        return replace(self, act_bits=None)


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
