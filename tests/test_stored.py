"""Every stored form: what it takes, what comes back, how close it is."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from mpsearch import UsageError
from mpsearch.quant import quantize_weight
from mpsearch.quant.stored import FORMS, Integers, form_of
from mpsearch.types import Format
from mpsearch.types.storage import metadata_bytes, parts, unfit

SHAPES = {  # shape → axis of the output channels
    "linear": ((6, 32), 0),
    "conv": ((8, 4, 3, 3), 0),
    "transposed": ((4, 8, 3, 3), 1),
    "odd": ((3, 5, 3, 3), 0),
}
TEXTS = (
    *(f"w{bits}" for bits in range(1, 9)),
    *(f"w{bits}z" for bits in range(1, 9)),
    *("w4g4", "w3zg12", "w2g9r2", "w1g4", "w4r1", "w2zr2", "w8zg4r3"),
    *("ternary", "twn", "fp16", "bf16", "fp8", "p1", "p4", "p8", "k1x3", "k4x3", "k12x3"),
)


def weight(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)


def error(text, value, axis=0):
    return (quantize_weight(value, Format.parse(text), axis).dequantized() - value).double().square().sum().item()


FITTING = [
    pytest.param(text, shape, axis, id=f"{text}-{name}")
    for text, (name, (shape, axis)) in product(TEXTS, SHAPES.items())
    if not unfit(Format.parse(text), shape, axis)
]


@pytest.mark.parametrize("text", TEXTS)
def test_formats_print_as_they_are_read(text):
    assert str(Format.parse(text)) == text
    assert str(Format.parse(text + "a8")) == text + "a8"
    assert any(form_of(Format.parse(text)) is form for form in FORMS.values())


@pytest.mark.parametrize(("text", "shape", "axis"), FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_bytes_are_those_promised_and_come_back(text, shape, axis, dtype):
    format = Format.parse(text)
    stored = quantize_weight(weight(shape).to(dtype), format, axis)
    packed = stored.packed()
    assert {name: own.numel() * own.element_size() for name, own in packed.items()} == parts(format, shape, axis)
    back = form_of(format).unpacked(packed, format, shape, axis, dtype)
    assert back.dequantized().dtype == dtype
    assert back.dequantized().shape == torch.Size(shape)
    assert torch.equal(back.dequantized(), stored.dequantized())


@pytest.mark.parametrize(("text", "shape", "axis"), FITTING)
def test_the_same_weight_gives_the_same_form_and_zeros_stay_zeros(text, shape, axis):
    first, second = (quantize_weight(weight(shape), Format.parse(text), axis).dequantized() for _ in range(2))
    assert torch.equal(first, second)
    zeros = quantize_weight(torch.zeros(shape), Format.parse(text), axis).dequantized()
    assert zeros.abs().max() < 1e-9


@pytest.mark.parametrize(("text", "shape", "axis"), FITTING)
def test_gradients_reach_all_that_is_learnable(text, shape, axis):
    stored = quantize_weight(weight(shape), Format.parse(text), axis)
    numbers = {name: value.float().clone().requires_grad_() for name, value in stored.learnable.items()}
    moved = stored.with_learnable(numbers)
    assert torch.equal(moved.dequantized(), stored.dequantized())
    if numbers:
        gradients = torch.autograd.grad(moved.dequantized().square().sum(), list(numbers.values()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("shape", [(16, 24), (8, 6, 3, 3)])
def test_what_takes_more_bytes_is_closer(shape):
    value = weight(shape)
    assert error("w4g6", value) < error("w4", value)
    assert error("w4r4", value) < error("w4r1", value) < error("w4", value)
    assert error("p4", value) < error("p3", value) < error("p2", value)
    assert error("w3z", value) < error("w2z", value) < error("w1z", value)
    assert error("bf16", value) < error("fp8", value) < error("w4", value)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3000), 0), ((6, 5, 3, 3), 1), ((1, 4, 2, 3, 3), 1)])
def test_widths_that_are_fitted_together_are_those_fitted_alone(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    widths = (8, 2, 5, 3)
    for bits, form in zip(widths, Integers.of_widths(weight, widths, axis), strict=True):
        alone = quantize_weight(weight, Format("int", bits), axis)
        assert form.format == alone.format
        assert all(torch.equal(form.packed()[part], own) for part, own in alone.packed().items())


def test_zero_points_help_where_weights_lie_on_one_side():
    value = weight((16, 24)).abs() + 0.1
    assert error("w4z", value) < 0.5 * error("w4", value)


def test_four_levels_of_a_codebook_find_four_values():
    levels = torch.tensor([-3.0, -1.0, 0.5, 2.0]).repeat(10)  # as often in every channel, which have one scale then
    generator = torch.Generator().manual_seed(0)
    value = torch.stack([levels[torch.randperm(40, generator=generator)] for _ in range(4)])
    assert error("p2", value) < 1e-5 * value.square().sum()


def test_a_codebook_of_kernels_finds_the_kernels():
    kernels = weight((4, 3, 3))
    value = kernels[torch.randint(4, (8, 16), generator=torch.Generator().manual_seed(0))]
    assert error("k4x3", value) < 1e-3 * value.square().sum()


def test_ternary_levels_are_the_best_there_are():
    value = weight((1, 9), seed=3)
    row = value[0].double()
    best = math.inf
    for codes in product((-1, 0, 1), repeat=9):  # for given codes a mean is the best level
        chosen = torch.tensor(codes)
        total = row[chosen == 0].square().sum()
        for sign in (-1, 1):
            own = row[chosen == sign]
            if len(own) and sign * own.mean() > 0:
                total += (own - own.mean()).square().sum()
            else:
                total += own.square().sum()
        best = min(best, total.item())
    assert error("ternary", value) == pytest.approx(best, rel=1e-5)


def test_the_threshold_of_ternary_weight_networks_stores_less_and_errs_more():
    value = weight((8, 64))
    threshold = 0.7 * value.abs().mean(1, keepdim=True)
    kept = value.abs() > threshold
    level = (value.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    twn, ternary = Format.parse("twn"), Format.parse("ternary")
    torch.testing.assert_close(quantize_weight(value, twn, 0).dequantized(), level * kept * value.sign())
    assert error("ternary", value) < error("twn", value)
    sizes = [sum(parts(format, value.shape, 0).values()) for format in (ternary, twn)]
    assert sizes[0] - sizes[1] == 4 * 8


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("w4g5", (6, 32), "groups of 5 do not divide the 32"),
        ("k4x3", (8, 4, 1, 1), "kernels of 3×3, but it has 1×1"),
        ("k4x3", (6, 32), "it has no kernels"),
        ("w4r6", (6, 32), "rank 6 of a matrix whose rank is 6"),
    ],
)
def test_a_weight_that_cannot_take_a_format_says_why(text, shape, why):
    with pytest.raises(UsageError, match=why):
        quantize_weight(weight(shape), Format.parse(text), 0)


def test_metadata_is_what_lies_beside_the_codes_and_one_scale_a_channel():
    def more(text):
        return metadata_bytes(Format.parse(text), (8, 4, 3, 3), 0)

    assert more("w4") == more("fp16") == more("fp8") == 0
    assert more("w4z") == 8
    assert more("w4g12") == 4 * 8 * 2
    assert more("ternary") == 4 * 8
    assert more("p4") == 2 * 16
    assert more("k4x3") == 2 * 16 * 9
    assert more("w4r2") == 2 * 2 * (8 + 36)
