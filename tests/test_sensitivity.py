from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch import BitMap, Unit, UsageError, find_layers
from mpsearch.api import make_subject
from mpsearch.features import frechet_distance, moments, pooled_pixels, principal_axes
from mpsearch.registry import make
from mpsearch.sensitivity import ESTIMATORS, FidProxy, Hessian, OnePass, Pairwise, Perturbation
from mpsearch.sensitivity.compare import agreement
from mpsearch.types import parse_formats


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_keeps_the_contract(name, case, snapshot):
    """A new estimator in the registry is tested here, on every kind of model: shape, determinism, nothing changed."""
    model, batches = case
    shot = snapshot(model)
    formats = parse_formats(["w2", "w4", "w4a4", "w8a8", "float"])
    memo = {}
    first = ESTIMATORS[name]()(make_subject(model, batches, memo=memo), formats)
    shot.check()
    kept = dict(memo)
    for stored, inference in ((memo, False), ({}, True)):  # from memory; anew, and in inference mode
        with torch.inference_mode(inference):
            again = ESTIMATORS[name]()(make_subject(model, batches, memo=stored), formats)
        assert np.array_equal(first.values, again.values, equal_nan=True)
        assert np.array_equal(first.stderr, again.stderr, equal_nan=True)
    assert memo == kept
    layers = find_layers(model, batches[0])
    assert first.units == layers.units
    assert first.source.startswith(f"{name}(")
    allowed = [[f in layers.choices(layer, formats) for f in first.formats] for layer in layers]
    assert np.array_equal(~np.isnan(first.values), allowed)
    assert np.array_equal(~np.isnan(first.stderr), allowed)
    columns = [str(f) for f in first.formats]
    np.testing.assert_allclose(first.values[:, columns.index("float")], 0, atol=1e-12)
    assert np.nanmin(first.stderr) >= 0
    assert name in ("signed", "pairwise", "fid-proxy") or np.nanmin(first.values) >= 0
    if first.measure == "mse":
        assert np.nanmax(first.values[:, columns.index("w2")]) > np.nanmax(first.values[:, columns.index("w4")])


class Linear(nn.Module):
    """y = W₂ (W₁ x): damage of one layer is exactly first order, so estimates have a closed form."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(5, 7, bias=False), nn.Linear(7, 4, bias=False)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))

    def forward(self, x):
        return self.second(self.first(x))


def linear_case(samples=24):
    x = torch.randn(samples, 5, generator=torch.Generator().manual_seed(1))
    return make_subject(Linear(), [(x[:10],), (x[10:],)]), x


@pytest.mark.parametrize("formats", [["w2", "w3", "w5"], ["w2a4", "w8a8"]])
def test_one_pass_is_unbiased_on_a_linear_model(formats):
    subject, _ = linear_case()
    formats = parse_formats(formats)
    exact = Perturbation()(subject, formats).values
    table = OnePass(probes=4000)(subject, formats)
    weights_only = all(f.act_bits is None for f in formats)
    # With activations ΔW·Δx is second order: a few per cent here.
    slack = 1e-4 if weights_only else 0.12
    assert (np.abs(table.values - exact) <= 4 * table.stderr + slack * exact).all()
    assert (table.stderr < 0.1 * table.values + 1e-9).all()


def test_perturbation_has_the_closed_form():
    subject, x = linear_case()
    (f3,) = parse_formats(["w3"])
    model = subject.model
    delta = subject.bank.dequantized("second.weight", f3) - model.second.weight.detach()
    errors = (model.first(x) @ delta.T).detach().double().square().mean(1)
    table = Perturbation()(subject, [f3])
    assert table.value("second.weight", "w3") == pytest.approx(errors.mean().item(), rel=1e-5)
    assert table.stderr[1, 0] == pytest.approx(errors.std().item() / len(errors) ** 0.5, rel=1e-4)


def exact_cross(subject, name, other, first, second):
    """``2⟨JΔ_i, JΔ_j⟩ / n`` of the linear model: what it changes, to first order, in closed form."""
    w1, w2 = subject.bank.weight("first.weight"), subject.bank.weight("second.weight")
    x = torch.cat([args[0] for args in subject.calibration.batches])

    def moved(name, format):
        delta = subject.bank.dequantized(name, format) - subject.bank.weight(name)
        return (x @ delta.T @ w2.T if name == "first.weight" else x @ w1.T @ delta.T).double()

    return 2 * (moved(name, first) * moved(other, second)).mean().item()


def test_the_pair_terms_of_one_pass_are_the_exact_cross_terms():
    subject, _ = linear_case()
    formats = parse_formats(["w2", "w3", "w5"])
    method = OnePass(probes=4000)
    pairs = method.pairs(subject, formats)
    before = dict(subject.memo)
    table = method(subject, formats)
    assert subject.memo == before, "the table comes with the pairs"
    np.testing.assert_allclose(pairs.diagonal, table.values, rtol=1e-6)
    scale = np.sqrt(pairs.diagonal)
    count = pairs.vectors.shape[2]
    for a, first in enumerate(formats):
        for b, second in enumerate(formats):
            exact = exact_cross(subject, "first.weight", "second.weight", first, second)
            # A product of two projections varies by no more than sqrt(2) times their lengths (Rademacher vectors).
            error = 2 * 2**0.5 * scale[0, a] * scale[1, b] / (count / len(subject.calibration)) ** 0.5
            assert abs(pairs.interaction(0, a, 1, b) - exact) <= 4 * error
            assert error < 0.1 * scale[0, a] * scale[1, b]
            whole = pairs.damage(np.array([a, b]))
            assert whole == pytest.approx(table.values[0, a] + table.values[1, b] + pairs.interaction(0, a, 1, b))
    errors = [abs(exact_cross(subject, "first.weight", "second.weight", f, f)) for f in formats]
    assert errors[0] > 0.1 * scale[0, 0] * scale[1, 0], "there is something to see"
    again = method.pairs(make_subject(subject.model, subject.calibration.batches, memo=subject.memo), formats)
    assert np.array_equal(again.vectors, pairs.vectors)


def test_pairs_of_activations_and_of_every_kind_of_model(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    subject = make_subject(model, batches)
    formats = parse_formats(["w2", "w4a4", "float"])
    pairs = OnePass(probes=8).pairs(subject, formats)
    shot.check()
    table = OnePass(probes=8)(make_subject(model, batches), formats)
    assert pairs.units == table.units
    assert pairs.formats == table.formats
    allowed = ~np.isnan(table.values)
    np.testing.assert_allclose(pairs.diagonal[allowed], table.values[allowed], rtol=1e-6, atol=1e-15)
    longer = pairs.scaled_to(replace(table, values=3 * table.values))
    np.testing.assert_allclose(longer.diagonal[allowed], 3 * table.values[allowed], rtol=1e-6, atol=1e-15)


def test_measured_pairs_are_what_two_layers_do_beyond_their_sum(deconv):
    model, batches = deconv
    formats = parse_formats(["w2", "w3", "w6"])
    subject = make_subject(model, batches)
    method = Pairwise(layers=2)
    found = method.interactions(subject, formats)
    assert found.formats == formats[:2], "the cheap ones"
    singles = Perturbation()(subject, formats)
    worst = np.argsort(-singles.values[:, :2].max(axis=1))[:2]
    assert [subject.layers.units[at] for at in sorted(worst)] == list(found.units)
    (one, two) = (unit.layer for unit in found.units)
    for a, first in enumerate(found.formats):
        for b, second in enumerate(found.formats):
            both = subject.error(BitMap({one: first, two: second})).value
            expected = both - singles.value(one, first) - singles.value(two, second)
            assert found.interaction[0, a, 1, b] == pytest.approx(expected, rel=1e-9, abs=1e-15)
            assert found.interaction[1, b, 0, a] == found.interaction[0, a, 1, b]
    assert (found.interaction[0, :, 0] == 0).all()
    table = method(subject, formats)
    assert len(subject.memo) == 9 + 4, "nothing but three layers in three formats and four pairs is measured"
    (row, other) = sorted(worst)
    augmented = singles.values[row, :2] + found.interaction[0, :, 1].mean(axis=1) / 2
    assert table.values[row, :2] == pytest.approx(augmented)
    assert table.values[other, :2] == pytest.approx(singles.values[other, :2] + found.interaction[1, :, 0].mean(1) / 2)
    assert np.array_equal(table.values[:, 2], singles.values[:, 2])
    with pytest.raises(UsageError, match="at least 2 layers and 1 format, not 1 and 2"):
        Pairwise(layers=1)


class Curved(Linear):
    def forward(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))


def test_hutchinson_is_within_three_standard_errors_of_the_exact_trace():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    model = Curved()
    subject = make_subject(model, [(x[:5],), (x[5:],)])
    traces, stderr = Hessian(probes=500).traces(subject)
    target = model(x).detach()
    for row, name in enumerate(["first.weight", "second.weight"]):

        def loss(weight, name=name):
            return (torch.func.functional_call(model, {name: weight}, (x,)) - target).square().mean()

        weight = dict(model.named_parameters())[name].detach()
        exact = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).trace().item()
        assert abs(traces[row] - exact) <= 3 * stderr[row] + 1e-6 * exact  # float32 where probes do not vary at all
        assert stderr[row] < 0.1 * exact


def test_hessian_score_follows_hawq_v2():
    subject, _ = linear_case()
    formats = parse_formats(["w3"])
    method = Hessian(probes=64)
    table, (traces, _) = method(subject, formats), method.traces(subject)
    for row, layer in enumerate(subject.layers):
        delta = subject.bank.dequantized(layer.name, formats[0]) - subject.bank.weight(layer.name)
        expected = traces[row] / layer.numel * delta.square().sum().item() / 2
        assert table.values[row, 0] == pytest.approx(expected, rel=1e-5)


def test_one_pass_ranks_like_the_truth_on_the_embedded_generator(embedded):
    subject = embedded
    formats = parse_formats(["w2", "w3", "w4", "w6"])
    truth = Perturbation()(subject, formats)
    rank, log, cells = agreement(OnePass()(subject, formats), truth)
    assert cells == 60
    assert rank > 0.97
    assert log > 0.97


def test_activation_scores_follow_the_truth(deconv):
    subject = make_subject(*deconv)
    formats = parse_formats(["a8", "a6", "a4"])
    truth = Perturbation()(subject, formats)
    one_pass = OnePass(probes=64)(subject, formats)
    assert (np.abs(np.log(one_pass.values / truth.values)) < 0.7).all()


def test_fid_proxy_is_the_change_of_the_distance_on_the_same_latents(deconv):
    subject = make_subject(*deconv)
    (f2,) = parse_formats(["w2"])
    real = torch.randn(50, 3 * 64, generator=torch.Generator().manual_seed(0))
    target = moments(real)
    table = FidProxy(reference=target)(subject, [f2])
    before = moments(pooled_pixels(torch.cat(subject.reference)))
    after = moments(pooled_pixels(torch.cat(subject.images(BitMap({"main.3.weight": "w2"})))))
    axes, few = principal_axes(target, 12)
    assert "12 generated and 50 of the reference for 192 feature dimensions" in few
    before, after, target = (found.on(axes) for found in (before, after, target))
    expected = frechet_distance(after, target) - frechet_distance(before, target)
    assert table.value("main.3.weight", "w2") == pytest.approx(expected, rel=1e-9)
    assert table.measure == "fd"
    assert table.notes["noise_floor"] > 0
    assert table.notes["fd_float"] == pytest.approx(frechet_distance(before, target))


def test_nothing_in_the_memo_is_measured_again(deconv, monkeypatch):
    model, batches = deconv
    memo = {}
    names, formats = tuple(ESTIMATORS), parse_formats(["w2", "w4"])
    tables = [ESTIMATORS[name]()(make_subject(model, batches, memo=memo), formats) for name in names]
    kept = dict(memo)

    def fail(*args, **kwargs):
        raise AssertionError("measured twice")

    for module in ("replays.forward", "mask.forward", "noise.forward", "probes.forward"):
        monkeypatch.setattr(f"mpsearch.sensitivity.{module}", fail)
    monkeypatch.setattr("mpsearch.subject.paired_errors", fail)
    monkeypatch.setattr("mpsearch.subject.Subject.images", fail)
    for name, table in zip(names, tables, strict=True):
        again = ESTIMATORS[name]()(make_subject(model, batches, memo=memo), formats)
        assert np.array_equal(again.values, table.values)
    assert memo == kept


def test_unknown_methods_and_options_are_refused():
    with pytest.raises(UsageError, match=r"unknown estimator 'hesian'; the closest is 'hessian'"):
        make("estimator", ESTIMATORS, "hesian")
    with pytest.raises(UsageError, match=r"estimator 'one-pass' has no option 'probe'; it has probes, seed"):
        make("estimator", ESTIMATORS, "one-pass", {"probe": 3})
    for method in (OnePass, Hessian):
        with pytest.raises(UsageError, match="at least 2 probes"):
            method(probes=1)


def test_channels_are_scored_by_the_very_passes_that_score_layers(case):
    model, batches = case
    subject = make_subject(model, batches)
    formats = parse_formats(["w2", "w4", "w3a8", "fp16"])
    layers, channels = OnePass(probes=8).by_channel(subject, formats)
    alone = OnePass(probes=8)(subject, formats)
    np.testing.assert_allclose(layers.values, alone.values, rtol=1e-4, atol=1e-12)
    assert set(parse_formats(["w2", "w4"])) <= set(channels.formats), "and w3 where a layer takes weights only"
    assert all(format.bits and not format.act_bits for format in channels.formats)
    assert len(channels.units) == sum(layer.channels for layer in subject.layers)


def test_a_channel_is_scored_by_its_exact_share(deconv):
    """Against the Jacobian product of each channel's rounding error, summed over samples."""
    model, batches = deconv
    model.eval()
    subject = make_subject(model, batches)
    (w2,) = parse_formats(["w2"])
    _, table = OnePass(probes=2000)._tables(subject, [w2], True)  # before cells borrow from one another
    weights = {name: subject.bank.weight(name).detach() for name in (layer.name for layer in subject.layers)}
    samples = subject.samples * subject.reference[0][0].numel()
    for layer in subject.layers:
        name = layer.name
        delta = subject.bank.dequantized(name, w2) - weights[name]
        for channel in (0, layer.channels - 1):
            one = torch.zeros_like(delta)
            one.select(layer.channel_axis, channel).copy_(delta.select(layer.channel_axis, channel))
            exact = 0.0
            for batch in batches:

                def run(weight, batch=batch, name=name):
                    return torch.func.functional_call(model, {name: weight}, batch)

                _, moved = torch.autograd.functional.jvp(run, weights[name], one)
                exact += moved.double().square().sum().item() / samples
            found = table.value(Unit(name, (channel,)), w2)
            at = table.units.index(Unit(name, (channel,)))
            assert abs(found - exact) <= 4 * table.stderr[at, 0] + 1e-5 * exact


def test_tables_of_single_batches_add_up_and_share_the_passes(subject):
    formats = parse_formats(["w2", "w4"])
    whole = OnePass(probes=8)(subject, formats)
    known = len(subject.memo)
    parts = OnePass(probes=8).by_batch(subject, formats)
    assert len(parts) == len(subject.calibration)
    assert len(subject.memo) == known
    assert np.allclose(sum(part.values for part in parts), whole.values, rtol=1e-12)
