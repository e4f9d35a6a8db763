"""``styles``: what the synthesis network of a StyleGAN reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.errors import UsageError
from mpsearch.inputs.draws import Normal
from mpsearch.model import evaluating, forward

CENTRE = 4096  # latents behind the mean style


@dataclass(frozen=True)
class Styles:
    """Styles ``w = mapping(z)`` of latents z from N(0, 1), each drawn towards the mean style by ``truncation``.

    The truncation trick: Karras, Laine, Aila, "A Style-Based Generator Architecture", CVPR 2019, appendix B.

    Attributes:
        mapping: the float mapping network; in a config, its factory ``module:function``.
        shape: of one latent z.
        truncation: 1 keeps every style, 0 leaves the mean style only.
    """

    mapping: nn.Module
    shape: tuple[int, ...]
    truncation: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.mapping, nn.Module):
            raise UsageError(f"the mapping of styles is a {type(self.mapping).__name__}: expected a torch.nn.Module")
        if not 0 <= self.truncation <= 1:
            raise UsageError(f"the truncation of styles is {self.truncation}: expected 0 … 1")

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        w = self._mapped(count, generator)
        if self.truncation == 1:
            return w
        centre = self._mapped(CENTRE, torch.Generator().manual_seed(0)).mean(0)
        return centre + self.truncation * (w - centre)

    @torch.no_grad()
    def _mapped(self, count: int, generator: torch.Generator) -> Tensor:
        with evaluating(self.mapping):
            w = forward(self.mapping, (Normal(self.shape)(count, generator),))
        if len(w) != count:
            raise UsageError(f"the mapping of styles makes {len(w)} of {count} latents: expected one style each")
        return w
