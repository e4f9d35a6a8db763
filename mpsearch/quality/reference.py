"""What generated features are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, isfinite

from mpsearch.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Reference:
    """Features ``(N, D)`` that generated ones are compared with, and what they are of.

    Attributes:
        features: of images that the generator was not trained on, where there are any.
        name: what they are of, for people.
        own: they are of the float generator's own images, for want of real ones.
        train: features ``(M, D)`` of images that it was trained on.
    """

    features: Tensor
    name: str
    own: bool = False
    train: Tensor | None = None

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a safetensors file: a tensor ``features``, perhaps one ``train``, and a ``name`` in its metadata."""
        try:
            with safe_open(path, "pt") as file:
                found = {key: file.get_tensor(key).float() for key in ("features", "train") if key in file.keys()}  # noqa: SIM118
                name = (file.metadata() or {}).get("name", path.name)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} is no file of reference features: {error}") from None
        if "features" not in found:
            raise ArtifactError(f"{path} is no file of reference features: it has no tensor 'features'")
        for key, rows in found.items():
            if rows.ndim != 2 or len(rows) < 2 or not bool(isfinite(rows).all()):
                raise ArtifactError(f"{path} holds {key} of {tuple(rows.shape)}: expected 2 or more finite rows")
        features, train = found["features"], found.get("train")
        if train is not None and train.shape[1] != features.shape[1]:
            raise ArtifactError(f"{path} holds {features.shape[1]} features an image, but {train.shape[1]} in 'train'")
        return cls(features, name, train=train)
