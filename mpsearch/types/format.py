"""``Format``: one choice of representation for the weights and input activations of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mpsearch.errors import UsageError

_GRAMMAR = re.compile(r"(?:(?P<kind>float|fp16)|w(?P<bits>[2-8]))?(?:a(?P<act>[468]))?")
FLOAT_BITS = 32


@dataclass(frozen=True)
class Format:
    """One choice for a unit: ``w4``, ``w4a8``, ``fp16``, ``fp16a8``, ``float``, ``a8``.

    ``str`` and :meth:`parse` are inverses. Solvers never look inside: they see damage and costs.

    Attributes:
        kind: ``int`` (symmetric, per output channel), ``fp16`` or ``float`` (kept as it is).
        bits: integer width of the weights, 2 to 8; None unless ``kind`` is ``int``.
        act_bits: width of the static affine input activations, 8, 6 or 4; None = float.
    """

    kind: Literal["int", "fp16", "float"] = "float"
    bits: int | None = None
    act_bits: int | None = None

    @classmethod
    def parse(cls, text: str) -> Format:
        """Read a format; ``UsageError`` names what is allowed."""
        match = _GRAMMAR.fullmatch(text) if isinstance(text, str) and text else None
        if match is None:
            raise UsageError(
                f"unknown format {text!r}: use w2 … w8, fp16 or float, then a8, a6, a4 or nothing (w4, w4a8, fp16a8)"
            )
        act = int(match["act"]) if match["act"] else None
        if match["bits"]:
            return cls("int", int(match["bits"]), act)
        return cls("fp16" if match["kind"] == "fp16" else "float", None, act)

    def __str__(self) -> str:
        weights = f"w{self.bits}" if self.kind == "int" else self.kind
        act = f"a{self.act_bits}" if self.act_bits else ""
        return act if act and weights == "float" else weights + act

    @property
    def weight_bits(self) -> int | None:
        """Stored bits of one weight; None = float, left as it is."""
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
