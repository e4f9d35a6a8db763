"""``inception``: features of the standard Inception, by torch-fidelity's own code and weights."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ArtifactError, UsageError

PACKAGE = "torch_fidelity"
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class InceptionFeatures:
    """Images ``(N, 3 or 1, H, W)`` to ``(N, 2048)``, where they lie: the features of published FIDs.

    Pixels are scaled to 0 … 255 and rounded, as published FIDs are of stored pictures; the network resizes them itself.
    Nothing is fetched: the weights are the user's, and checked by hash before they are read.

    Attributes:
        weights: torch-fidelity's file; None = where torch-fidelity keeps it.
        low: value of black in the images.
        high: value of white.

    Raises:
        UsageError: no torch-fidelity, or no file of weights; the message says where to get it.
        ArtifactError: a file of other weights.
    """

    weights: str | None = None
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"inception needs low below high, not {self.low} and {self.high}")
        self._network("cpu")  # whatever is missing is said now, not after a search

    def _network(self, device: str) -> nn.Module:
        return _load(str(self.weights or Path(torch.hub.get_dir()) / "checkpoints" / FILE), device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = ((images.float() - self.low) * (255 / (self.high - self.low))).round().clamp(0, 255).to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        features: Tensor = self._network(str(images.device))(pixels)[0]
        return features


@cache
def _load(path: str, device: str) -> nn.Module:
    try:
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"inception: cannot read {path} ({error.strerror}): download {URL}") from None
    if found != SHA256:  # also because what torch-fidelity reads may be a pickle of anything
        raise ArtifactError(f"{path} is not {FILE}: its sha256 is {found[:8]}…, expected {SHA256[:8]}…")
    build: Any = extractor().FeatureExtractorInceptionV3
    network: nn.Module = build("inception", ["2048"], feature_extractor_weights_path=path)
    return network.to(device)


def extractor() -> ModuleType:
    """torch-fidelity's module of the network, without the package's ``__init__``: that wants torchvision."""
    name = f"{PACKAGE}.feature_extractor_inceptionv3"
    if PACKAGE in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the features 'inception' need torch-fidelity: pip install 'mpsearch[inception]'")
    shell = ModuleType(PACKAGE)
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[PACKAGE] = shell
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"the features 'inception' cannot use this torch-fidelity: {error}") from None
    finally:  # whoever imports the package later gets all of it
        for own in [other for other in sys.modules if other.split(".")[0] == PACKAGE]:
            del sys.modules[own]
