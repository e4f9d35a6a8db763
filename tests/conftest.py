"""Small generators with every kind of layer, and the means to tell whether one was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mpsearch
from mpsearch.api import make_subject
from mpsearch.errors import UsageError
from mpsearch.subject import Subject
from mpsearch.zoo import fetch_published, sagan


class Deconv(nn.Module):
    """DCGAN in small: transposed convolutions, batch norm, in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
            nn.ConvTranspose2d(8, 5, 4, 2, 1), nn.ReLU(True),
            nn.Conv2d(5, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])


class Modulated(nn.Module):
    """StyleGAN2's modulated convolution: one weight (1, out, in, k, k), used through a grouped functional call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.style = nn.Linear(4, inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        n, c, height, width = x.shape
        weight = self.weight * self.style(w)[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        return F.conv2d(x.reshape(1, n * c, height, width), weight.flatten(0, 1), padding=1, groups=n).reshape(
            n, -1, height, width
        )


class Styled(nn.Module):
    """Modulated convolutions, noise drawn inside the forward pass, a constant input."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.conv1, self.conv2 = Modulated(4, 6), Modulated(6, 3)
        self.strength = nn.Parameter(torch.tensor(0.2))

    def forward(self, w: Tensor) -> Tensor:
        h = self.conv1(self.constant.expand(len(w), -1, -1, -1), w)
        h = F.leaky_relu(h + self.strength * torch.randn(len(w), 1, 8, 8), 0.2)
        return self.conv2(h, w)


class Attentive(nn.Module):
    """Multi-head attention, a tied pair, computed weights of both generations, a dictionary for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm([4, 16])
        self.first = parametrizations.spectral_norm(nn.Linear(16, 16))
        self.second = nn.utils.spectral_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.third = parametrizations.weight_norm(nn.Linear(16, 16))
        self.left = nn.Linear(16, 16, bias=False)
        self.right = nn.Linear(16, 16, bias=False)
        self.right.weight = self.left.weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor) -> dict[str, Any]:
        h = self.embed(z)[:, None] * torch.linspace(0.5, 1.5, 4)[None, :, None]
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        h = self.second(self.third(F.silu(self.first(h))))
        h = self.dropout(self.right(F.silu(self.left(h))))
        return {"n": 3, "sample": h.reshape(len(z), 1, 8, 8)}


class Volume(nn.Module):
    """1-d and 3-d convolutions, two arguments, a tuple for an output, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(2, 4, 3, padding=1, groups=2)
        self.cube = nn.Conv3d(1, 3, 3, padding=1)
        self.up = nn.ConvTranspose3d(3, 2, 2, 2, groups=1)
        self.level = nn.Linear(1, 4)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        h = self.line(x) + self.level(t[:, None])[:, :, None]
        h = self.line(h[:, :2]) + h
        return self.up(F.relu(self.cube(h.reshape(len(x), 1, 2, 2, -1)))), None


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[tuple[Any, ...]]]]] = {
    "deconv": (Deconv, lambda: [(z,) for z in _draw(12, 6).split(6)]),
    "styled": (Styled, lambda: [(w,) for w in _draw(8, 4).split(4)]),
    "attentive": (Attentive, lambda: [(z,) for z in _draw(8, 6).split(4)]),
    "volume": (Volume, lambda: [(_draw(4, 2, 8), torch.linspace(0, 1, 4))]),
}


def error(model: nn.Module, bitmap: Any, batches: Any, bank: Any = None) -> float:
    """Mean squared error of the images under a map, summed over the batches."""
    with torch.no_grad():
        images = [model(*batch) for batch in batches]
    with mpsearch.quantized(model, bitmap, batches, bank) as small, torch.no_grad():
        pairs = zip(batches, images, strict=True)
        return sum((small(*batch) - image).square().mean().item() for batch, image in pairs)


def build(name: str) -> nn.Module:
    """The same weights every time, whatever ran before; left in training mode, as a careless caller would."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = MODELS[name][0]()
        for module in model.modules():  # statistics unlike those of a fresh module
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return model.train()


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[tuple[Any, ...]]]:
    """(model, batches) of every kind."""
    return build(request.param), MODELS[request.param][1]()


@pytest.fixture
def deconv() -> tuple[nn.Module, list[tuple[Any, ...]]]:
    return build("deconv"), MODELS["deconv"][1]()


@pytest.fixture
def subject(deconv: tuple[nn.Module, list[tuple[Any, ...]]]) -> Subject:
    return make_subject(*deconv)


class Snapshot:
    """Everything about a model and torch's global state that mpsearch must leave alone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self._take()

    def _take(self) -> dict[str, Any]:
        model = self.model
        return {
            "order": list(model.state_dict()),
            "state": {k: v.clone() for k, v in model.state_dict().items()},
            "flags": [m.training for m in model.modules()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "attributes": [sorted(m.__dict__) for m in model.modules()],
            "classes": [type(m) for m in model.modules()],
            "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "random": torch.get_rng_state(),
            "fastpath": torch.backends.mha.get_fastpath_enabled(),
            "grad mode": torch.is_grad_enabled(),
        }

    def check(self) -> None:
        after = self._take()
        for key, value in self.before.items():
            if key == "state":
                assert all(torch.equal(value[name], after[key][name]) for name in value), "a tensor changed"
            elif key == "random":
                assert torch.equal(value, after[key]), "the global random state moved"
            else:
                assert value == after[key], f"{key} changed"


@pytest.fixture
def snapshot() -> type[Snapshot]:
    return Snapshot


@pytest.fixture(scope="session")
def embedded() -> Subject:
    """The shipped generator on a few latents."""
    latents = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    return make_subject(sagan(), [(z,) for z in latents.split(8)])


@pytest.fixture(scope="session")
def published() -> Callable[[str], None]:
    """Fetches a published network into the user's cache, or skips: the first failure of pip stands for all."""
    failed: list[str] = []

    def have(name: str) -> None:
        if not failed:
            try:
                fetch_published(name)
            except UsageError as error:  # no index, no network; another archive would be an ArtifactError
                failed.append(str(error))
        if failed:
            pytest.skip(failed[0])

    return have
