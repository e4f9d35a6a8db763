import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch import BitMap, Format, UsageError, quantized
from mpsearch.calibration import Calibration, outputs
from mpsearch.model import evaluating, owner
from mpsearch.quant import (
    InputGrid,
    input_errors,
    observe,
    quantize_weight,
)
from mpsearch.quant.bank import WeightBank
from mpsearch.types import Range

SHAPES = {0: (5, 3, 3, 3), 1: (4, 6, 2, 2)}


def draw(shape, seed=0, tail=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x.sign() * x.abs() ** tail


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 10**6),
    tail=st.sampled_from([0.5, 1.0, 3.0]),
    size=st.floats(1e-20, 1e15),
)
def test_quantizing_twice_changes_nothing(bits, axis, seed, tail, size):
    format = Format("int", bits)
    once = quantize_weight(draw(SHAPES[axis], seed, tail) * size, format, axis)
    twice = quantize_weight(once.dequantized(), format, axis)
    assert torch.equal(once.codes, twice.codes)
    torch.testing.assert_close(once.scale, twice.scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_as_many_levels_on_both_sides_and_one_scale_a_channel(bits, axis):
    weight = draw(SHAPES[axis])
    result = quantize_weight(weight, Format("int", bits), axis)
    assert result.codes.dtype == torch.int8
    zero = torch.as_tensor(result.zero).expand_as(result.scale).flatten()
    assert set(zero.tolist()) <= ({0.0, -0.5} if bits < 4 else {0.0})
    steps = (result.codes - torch.as_tensor(result.zero)).movedim(axis, 0).flatten(1).abs().amax(1)
    assert steps.eq(2 ** (bits - 1) - 1 - zero).all(), "the outermost level is used"
    expected = [1] * 4
    expected[axis] = SHAPES[axis][axis]
    assert list(result.scale.shape) == expected


def test_zero_lies_between_two_codes_where_that_is_closer():
    generator = torch.Generator().manual_seed(0)
    normal, sparse = (torch.randn(4, 500, generator=generator) for _ in range(2))
    sparse *= torch.rand(4, 500, generator=generator) < 0.3
    weight = torch.cat([normal, sparse])
    for bits, top in ((2, 1), (3, 3)):
        stored = quantize_weight(weight, Format("int", bits), 0)
        assert stored.zero.flatten().tolist() == [-0.5] * 4 + [0.0] * 4
        assert stored.codes[:4].unique().tolist() == list(range(-top - 1, top + 1))
        assert stored.codes[4:].unique().tolist() == list(range(-top, top + 1))
        assert (stored.dequantized()[4:][sparse == 0] == 0).all()
        scales = (weight.abs().amax(1, keepdim=True) / top) * torch.linspace(0.02, 1.0, 1000)[:, None, None]
        plain = ((weight / scales).round().clamp(-top, top) * scales - weight).square().sum(2).amin(0)
        found = (stored.dequantized() - weight).square().sum(1)
        assert (found[:4] < 0.9 * plain[:4]).all()
        assert (found <= 1.02 * plain).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("tail", [0.5, 1.0, 2.5])
def test_scales_are_as_good_as_an_exhaustive_search(bits, tail):
    row = draw((1, 400), seed=bits, tail=tail)
    top = 2 ** (bits - 1) - 1
    scales = (row.abs().max() / top) * torch.linspace(0.02, 1.0, 4000)[:, None]
    errors = ((row / scales).round().clamp(-top, top) * scales - row).square().sum(1)
    if bits < 4:
        between = ((row / scales - 0.5).round().clamp(-top - 1, top) + 0.5) * scales
        errors = torch.cat([errors, (between - row).square().sum(1)])
    found = (quantize_weight(row, Format("int", bits), 0).dequantized() - row).square().sum()
    assert found <= errors.min() * 1.02


def test_mse_scales_beat_the_absolute_maximum():
    weight = draw((16, 500), tail=1.5)
    for bits in (2, 3, 4):
        top = 2 ** (bits - 1) - 1
        scale = weight.abs().amax(1, keepdim=True) / top
        plain = ((weight / scale).round() * scale - weight).square().sum()
        fitted = (quantize_weight(weight, Format("int", bits), 0).dequantized() - weight).square().sum()
        assert fitted < 0.7 * plain


def test_zero_channels_and_float16():
    weight = draw((3, 4))
    weight[1] = 0
    assert quantize_weight(weight, Format("int", 2), 0).dequantized()[1].eq(0).all()
    half = quantize_weight(weight, Format.parse("fp16"), 0)
    assert torch.equal(half.dequantized(), weight.half().float())


@given(st.floats(-10, 0), st.floats(0, 10), st.sampled_from([4, 6, 8]))
def test_activation_grids_hold_zero_and_their_own_points(low, high, bits):
    grid = InputGrid((Range(low, high),), bits)
    x = torch.linspace(-12, 12, 101)
    once = grid(x)
    assert len(once.unique()) <= 2**bits
    assert grid(torch.zeros(1)).item() == 0
    torch.testing.assert_close(grid(once), once, rtol=1e-5, atol=1e-6)


def test_errors_on_many_grids_are_those_of_one_grid_each():
    x = draw((3, 40, 5), tail=2.0)
    grids = [InputGrid((Range(*ends),), bits) for *ends, bits in ((-2.0, 5.0, 4), (0.0, 3.0, 8), (-1.0, 0.0, 6))]
    expected = torch.stack([(grid(x) - x).flatten() for grid in grids])
    torch.testing.assert_close(input_errors(x, grids), expected, rtol=0, atol=1e-6)


def test_activation_ranges_minimise_the_rounding_error(deconv):
    model, batches = deconv
    calibration = Calibration.of(batches)
    _, seen = observe(model, calibration, {"main.3.weight": ("main.3.weight",)}, {"main.3.weight": ()})
    grids = {bits: seen["main.3.weight"].grid(bits) for bits in (4, 8)}
    (four,), (eight,) = (grids[bits].ranges for bits in (4, 8))
    read = []
    hook = model.main[3].register_forward_pre_hook(lambda m, args: read.append(args[0].flatten()))
    outputs(model, calibration)
    hook.remove()
    values = torch.cat(read)
    full = InputGrid((Range(0.0, values.max().item()),), 4)

    def error(grid):
        return (grid(values) - values).square().mean()

    assert four.low == 0.0, "after ReLU nothing is negative"
    assert error(grids[4]) <= error(full)
    assert four.high <= eight.high <= values.max().item() * (1 + 1e-6)


def test_a_map_replaces_exactly_the_named_weights_and_undoes_it(case, snapshot):
    model, batches = case
    layers = WeightBank(model)
    shot = snapshot(model)
    calibration = Calibration.of(batches)
    before = outputs(model, calibration)
    names = [name for name in layers._sites if name not in ("right.weight",)]
    for name in names:
        with quantized(model, {name: "w3"}):
            module, tensor = owner(model, name)
            with evaluating(model):  # in training mode, reading a spectrally normalised weight changes it
                assert torch.equal(getattr(module, tensor), layers.dequantized(name, Format.parse("w3")))
            moved = outputs(model, calibration)
        exact = torch.equal(layers.weight(name), layers.dequantized(name, Format.parse("w3")))
        assert exact or any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True)), name
        shot.check()
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model, calibration), strict=True))


def test_activations_are_quantized_and_undone(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    calibration = Calibration.of(batches)
    before = outputs(model, calibration)
    name = "attention.in_proj_weight" if hasattr(model, "attention") else next(iter(WeightBank(model)._sites))
    with quantized(model, {name: "a4"}, batches):
        moved = outputs(model, calibration)
    shot.check()
    assert any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))


def test_tied_weights_move_together():
    from conftest import build

    model = build("attentive")
    with quantized(model, {"left.weight": "w2"}):
        assert torch.equal(model.left.weight, model.right.weight)
        assert len(model.right.weight.unique()) > 1
        assert model.right.weight[0].abs().unique().numel() <= 2


def test_an_error_inside_restores_everything(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    name = next(iter(WeightBank(model)._sites))
    with pytest.raises(ZeroDivisionError), quantized(model, {name: "w2a8"}, batches):
        raise ZeroDivisionError
    shot.check()


def test_a_map_that_fits_another_model_is_refused(deconv):
    model, _ = deconv
    with (
        pytest.raises(UsageError, match=r"no layer 'main.1.weight'; the closest is 'main."),
        quantized(model, {"main.1.weight": "w2"}),
    ):
        pass
    with (
        pytest.raises(UsageError, match="lack an activation range: pass batches="),
        quantized(model, {"main.0.weight": "w2a8"}),
    ):
        pass


def test_ranges_travel_with_the_map(deconv):
    model, batches = deconv
    calibration = Calibration.of(batches)
    bitmap = BitMap({"main.3.weight": "w4a4"}, {"main.3.weight": (Range(0.0, 1.5),)})
    again = BitMap.from_json(bitmap.to_json())
    assert again == bitmap
    with quantized(model, bitmap):
        first = outputs(model, calibration)
    with quantized(model, again):
        second = outputs(model, calibration)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.isclose(again.ranges["main.3.weight"][0].high, 1.5)
