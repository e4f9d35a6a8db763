"""Recoveries on generators that are not in single precision, draw noise, or are wired in unusual ways."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mpsearch
from mpsearch.calibration import Calibration
from mpsearch.errors import UsageError
from mpsearch.model.calls import calls_of
from mpsearch.quant import Recovered, WeightBank, quantized
from mpsearch.recovery.adaround import AdaRound
from mpsearch.recovery.reconstruction import Rounding
from mpsearch.recovery.scales import _score
from mpsearch.recovery.trial import Trial
from mpsearch.types import BitMap, Format, Range


def batches_of(*shape, count=6, dtype=torch.float32, samples=8):
    draws = torch.Generator().manual_seed(0)
    return [(torch.randn(samples, *shape, generator=draws).to(dtype),) for _ in range(count)]


def half_net(dtype):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 3, 3, padding=1),
    ).eval().to(dtype)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["adaround", "distil", "block_replace", "primal_dual", "realloc"])
def test_half_precision_recovers_as_single_does(dtype, method):
    model, batches = half_net(dtype), batches_of(8, dtype=dtype, count=16, samples=16)
    bitmap = dict.fromkeys(("0.weight", "2.weight", "5.weight"), "w3a8")
    steps = {"steps": 100} | ({} if method == "adaround" else {"rate": 0.02})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*diverged.*")
        bank = mpsearch.recover(model, bitmap, batches[:12], method, **steps)
    after, before = (mpsearch.validate(model, bitmap, batches[12:], bank=own).mse.value for own in (bank, None))
    assert after < 0.9 * before
    assert {tensor.dtype for tensor in bank.tensors.values()} <= {dtype}


def test_what_is_not_finite_is_never_the_best():
    model, batches = half_net(torch.float32), batches_of(8)
    trial = Trial(model, BitMap({"0.weight": "w3"}), WeightBank(model), Calibration.of(batches))
    assert trial.show(Recovered(tensors={"2.bias": torch.full((8,), torch.nan)})) == float("inf")


class Picky(nn.Module):
    """NaN for all weights but the float ones and those nearest to them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.known = []

    def forward(self, x):
        known = not self.known or any(torch.equal(self.a.weight, own) for own in self.known)
        return self.b(self.a(x).relu()) * (1.0 if known else torch.nan)


@pytest.mark.parametrize("method", ["adaround", "blocks", "scales", "equalise", "bias"])
def test_a_candidate_that_is_not_finite_is_one_that_is_not_taken(method):
    model, batches = Picky().eval(), batches_of(3, 6, 6)
    bitmap = {"a.weight": "w3", "b.weight": "w3"}
    with mpsearch.quantized(model, bitmap):
        nearest = model.a.weight.detach().clone()
    model.known += [model.a.weight.detach().clone(), nearest]
    bank = mpsearch.recover(model, bitmap, batches, method)
    with mpsearch.quantized(model, bitmap, bank=bank) as small, torch.no_grad():
        assert small(*batches[0]).isfinite().all()


def test_scales_of_a_transposed_convolution_are_shared_by_its_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    batches, bitmap = batches_of(16, 6, 6), {"0.weight": "w3a8", "2.weight": "w3"}
    for rule in ("output", "pearson"):
        bank = mpsearch.recover(model, bitmap, batches, "scales", rule=rule)
        after, before = (mpsearch.validate(model, bitmap, batches, bank=own).mse.value for own in (bank, None))
        assert after <= before
    ours, theirs = (torch.randn(5, 8, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    each = (ours - theirs).double().square().sum((0, 2, 3))
    torch.testing.assert_close(_score("output", [ours], [theirs], 1, 2), each.view(4, 2).sum(0))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x + torch.randn(len(x), 1, *x.shape[2:]))


def test_a_call_that_draws_noise_is_not_cut():
    torch.manual_seed(0)
    model = nn.Sequential(Noisy(), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    (batch, *_) = batches_of(4, 8, 8)
    (noisy,), (plain,) = (calls_of(model, module, batch, 0, 1) for module in (model[0], model[2]))
    assert (noisy.draws(model[0]), plain.draws(model[2])) == (True, False)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.at, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.at(x, x, x)[0])


@pytest.mark.parametrize("method", ["adaround", "blocks"])
def test_attention_that_returns_a_tuple_is_rounded_too(method):
    torch.manual_seed(0)
    model, batches = Attending().eval(), batches_of(5, 8)
    bitmap = dict.fromkeys(("at.in_proj_weight", "at.out_proj.weight", "last.weight"), "w3")
    bank = mpsearch.recover(model, bitmap, batches, method)
    for layer in ("at.in_proj_weight", "at.out_proj.weight"):
        before, after = (own.quantized(layer, BitMap(bitmap)[layer]).codes for own in (WeightBank(model), bank))
        assert not torch.equal(before, after), layer
    assert (
        mpsearch.validate(model, bitmap, batches, bank=bank).mse.value
        < mpsearch.validate(model, bitmap, batches).mse.value
    )


def test_rounding_goes_on_from_what_another_recovery_has_stored():
    model, format = half_net(torch.float32), Format.parse("w3")
    bank = WeightBank(model)
    nearest, weight = bank.quantized("2.weight", format), bank.weight("2.weight")
    moved = replace(nearest, codes=(nearest.codes + 1).clamp(max=3))
    for stored in (nearest, moved):
        assert torch.equal(Rounding(stored, weight).decided().codes, stored.codes)


def test_moving_ranges_of_a_layer_that_is_never_called_are_refused(tmp_path):
    model, batches = half_net(torch.float32), batches_of(8)
    model.never = nn.Linear(4, 4)
    model.forward = lambda x: nn.Sequential.forward(model[:6], x)
    for act in ("a8", "d8", "m8"):
        with pytest.raises(UsageError, match=r"never\.weight is never called on these inputs"):
            mpsearch.export(model, {"never.weight": f"w4{act}"}, tmp_path, batches)


def test_options_of_a_method_that_has_its_own_are_refused():
    model, batches = half_net(torch.float32), batches_of(8)
    with pytest.raises(UsageError, match="steps belong to a method that is named"):
        mpsearch.recover(model, {"0.weight": "w3"}, batches, AdaRound(), steps=3)
    with pytest.raises(UsageError, match="rate and strength above 0"):
        mpsearch.recover(model, {"0.weight": "w3"}, batches, "adaround", rate=float("inf"))


class Unused(nn.Module):
    """A layer that is never called beside one that is, under two names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.again = nn.ModuleList([self.conv])
        self.never = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.again[0](x).tanh()


@pytest.mark.parametrize("method", ["adaround", "blocks"])
def test_a_layer_that_is_never_called_is_left_as_it_is(method):
    model, batches = Unused(), batches_of(3, 8, 8)
    bitmap = {"conv.weight": "w3", "never.weight": "w3"}
    bank = mpsearch.recover(model, bitmap, batches, method, steps=10)
    nearest = WeightBank(model).dequantized("never.weight", Format.parse("w3"))
    assert torch.equal(bank.dequantized("never.weight", Format.parse("w3")), nearest)


def test_what_has_two_names_is_written_once(tmp_path):
    model, batches, bitmap = Unused(), batches_of(3, 8, 8), BitMap({"conv.weight": Format.parse("w2")})
    bank = WeightBank(model).recovered(bitmap, Recovered(tensors={"conv.bias": torch.tensor([1.0, 2.0, 3.0])}))
    file = mpsearch.export(model, bitmap, tmp_path, batches, kinds=["packed"], bank=bank)["packed"]
    with quantized(model, bitmap, bank=bank), torch.no_grad():
        wanted = model(*batches[0])
    assert torch.equal(mpsearch.load_packed(file, Unused())(*batches[0]), wanted)


def test_activations_of_a_layer_that_is_never_called_are_not_exported(tmp_path):
    bitmap = BitMap({"never.weight": Format.parse("w4a8")}, {"never.weight": (Range(-1.0, 1.0),)})
    with pytest.raises(UsageError, match=r"never\.weight is never called"):
        mpsearch.export(Unused(), bitmap, tmp_path, batches_of(3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_equalising_takes_no_power_iteration(snapshot):
    first = parametrizations.spectral_norm(nn.Linear(8, 32))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 12), nn.Unflatten(1, (3, 2, 2))).train()
    shot = snapshot(model)
    mpsearch.recover(model, {"0.weight": "w3", "2.weight": "w3"}, batches_of(8), "equalise")
    shot.check()
