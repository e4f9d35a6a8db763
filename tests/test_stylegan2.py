"""The StyleGAN2-type generator keeps what its file promises, and so does the way in which it is trained."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch import UsageError, find_layers, quantized
from mpsearch.calibration import Calibration, outputs
from mpsearch.config import load_config
from mpsearch.inputs import Styles
from mpsearch.run import Run
from mpsearch.zoo import stylegan2, stylegan2_mapping
from mpsearch.zoo.stylegan2 import LIMIT, Layer, ModulatedConv, StyleGAN2Generator
from training.stylegan2 import Discriminator, equalized, gradient_penalty, weight_at, with_deviation

Z = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """Weights as after some training: every strength and bias is another number than zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = StyleGAN2Generator(widths=(16, 12, 8, 8))
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "strength")):
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def textbook(conv, x, w):
    """Equations 1 and 3 of the paper: a weight for each sample, in one grouped convolution."""
    if conv.up:
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
    weight = conv.conv.weight[None] * conv.style(w)[:, None, :, None, None]
    if conv.demodulate:
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    n, (_, c, height, width) = len(w), x.shape
    joined = x.expand(n, -1, -1, -1).reshape(1, n * c, height, width)
    y = F.conv2d(joined, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=n)
    return y.reshape(n, -1, height, width)


# In float64 what is left is the 1e-8 that keeps channels of zeros finite, beside powers of another size.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-7)])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(("kernel", "demodulate"), [(3, True), (1, True), (1, False)])
def test_the_form_with_static_weights_is_the_textbook_form(dtype, tolerance, up, kernel, demodulate):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv = ModulatedConv(10, 7, kernel, demodulate, up).to(dtype)
        x, w = torch.randn(5, 10, 6, 6, dtype=dtype), torch.randn(5, 64, dtype=dtype)
    found, expected = conv(x, w), textbook(conv, x, w)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    if demodulate and not up:
        assert (conv(x, w) - conv(x, 9 * w)).abs().max() > 0.1, "the style has no effect"


@pytest.mark.parametrize("demodulate", [True, False])
def test_what_a_convolution_reads_does_not_depend_on_the_size_of_the_style(demodulate):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv, seen = ModulatedConv(10, 7, demodulate=demodulate), []
        x, w = torch.randn(5, 10, 6, 6), torch.randn(5, 64)
    conv.conv.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    first = conv(x, w)
    for parameter in conv.style.parameters():
        parameter.data.mul_(50)
    torch.testing.assert_close(conv(x, w), first if demodulate else 50 * first)
    torch.testing.assert_close(seen[1], seen[0])
    assert seen[0].abs().max() <= x.abs().max()


def test_the_whole_generator_is_the_textbook_one(model, monkeypatch):
    found = model.double()(Z.double())
    monkeypatch.setattr(ModulatedConv, "forward", textbook)
    torch.testing.assert_close(found, model(Z.double()), rtol=1e-6, atol=1e-6)


def test_demodulation_is_that_of_the_quantized_weights(model):
    conv = model.synthesis.first.modulated
    x, w = torch.randn(6, 16, 4, 4, generator=torch.Generator().manual_seed(2)), model.mapping(Z)
    float_output = conv(x, w)
    with quantized(model, {"synthesis.first.modulated.conv.weight": "w2"}):
        found, expected = conv(x, w), textbook(conv, x, w)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - float_output).abs().max() > 0.1


@torch.no_grad()
def test_in_evaluation_mode_it_is_a_function_of_z(model):
    torch.manual_seed(0)
    first = model(Z)
    torch.testing.assert_close(torch.cat([model(z) for z in Z.split(1)]), first, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(Z), first)
    assert first.abs().max() == 1
    drawn = model.train()(Z)
    assert not torch.equal(drawn, model(Z)), "training draws noise"
    assert drawn.abs().max() > 1, "a gradient is needed outside too"


@torch.no_grad()
def test_the_fixed_noise_matters_and_is_saved_with_the_weights(model):
    first = model(Z)
    twin = StyleGAN2Generator(widths=(16, 12, 8, 8)).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(Z), first)
    twin.synthesis.blocks[2].second.noise.neg_()
    assert not torch.equal(twin(Z), first)


@torch.no_grad()
def test_features_stay_within_a_limit(model):
    seen = []
    for layer in model.modules():
        if isinstance(layer, Layer):
            layer.bias.fill_(9)
            layer.register_forward_hook(lambda module, args, output: seen.append(output.abs().max().item()))
    model(Z)
    assert seen == [LIMIT] * 7


@torch.no_grad()
def test_latents_of_any_length_give_the_same_image(model):
    torch.testing.assert_close(model(3 * Z), model(Z), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_space_of_styles():
    whole, rest = stylegan2(), stylegan2(space="w")
    styles = whole.mapping(Z)
    assert torch.equal(rest(styles), whole(Z))
    assert torch.equal(whole.synthesis(styles), whole(Z))
    names = [layer.name for layer in find_layers(whole, (Z,))]
    assert [layer.name for layer in find_layers(rest, (styles,))] == [n for n in names if not n.startswith("mapping.")]
    with pytest.raises(UsageError, match="the space of stylegan2 is 'z' or 'w', not 'x'"):
        stylegan2(space="x")


def test_layers_of_the_shipped_generator():
    layers = find_layers(stylegan2(), (Z,))
    assert len(layers) == 26
    assert 300_000 <= layers.numel <= 600_000
    assert not [key for layer in layers for key in layer.state_keys if key != layer.name], "weights are plain"
    up = layers["synthesis.blocks.2.first.modulated.conv.weight"]
    assert up.shape == (24, 48, 3, 3)
    assert up.macs == 24 * 48 * 9 * 32 * 32
    assert up.act_elements == 48 * 32 * 32, "what the convolution reads: scaled by the style, and upsampled"
    assert layers["synthesis.blocks.2.to_grey.modulated.style.weight"].macs == 64 * 24


def test_activations_are_rounded_as_the_convolution_reads_them(model):
    seen = []
    conv = model.synthesis.blocks[0].first.modulated.conv
    handle = conv.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with quantized(model, {"synthesis.blocks.0.first.modulated.conv.weight": "w8a4"}, [(Z,)]):
        seen.clear()
        outputs(model, Calibration.of([(Z,)]))
    handle.remove()
    assert seen[0].shape == (6, 16, 8, 8)
    assert len(seen[0].unique()) <= 16


def test_plain_weights_with_equalised_rates_learn_as_scaled_ones_do():
    torch.manual_seed(5)
    plain = nn.Linear(9, 4)
    unit, bias = plain.weight.detach() * 3, plain.bias.detach().clone()
    unit.requires_grad_(), bias.requires_grad_()
    ours = torch.optim.Adam(equalized(plain, 0.1), betas=(0.0, 0.99), eps=0)
    theirs = torch.optim.Adam([unit, bias], 0.1, (0.0, 0.99), eps=0)
    for _ in range(5):
        x = torch.randn(8, 9)
        for optimiser, y in ((ours, plain(x)), (theirs, F.linear(x, unit / math.sqrt(9), bias))):
            optimiser.zero_grad()
            y.square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(plain.weight * 3, unit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.bias, bias, rtol=1e-4, atol=1e-5)


def test_the_mapping_network_learns_slowly_and_nothing_is_left_out():
    model = StyleGAN2Generator()
    groups = equalized(model, 1.0)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert rates[id(model.mapping.layers[0].weight)] == pytest.approx(0.01 / 8)
    assert rates[id(model.synthesis.first.modulated.conv.weight)] == pytest.approx((128 * 9) ** -0.5)
    assert rates[id(model.synthesis.first.bias)] == 1


def test_the_penalty_is_the_squared_gradient_and_can_be_learned_from():
    judge = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    found = gradient_penalty(judge, torch.randn(3, 1, 4, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, judge[1].weight.square().sum())
    found.backward()
    torch.testing.assert_close(judge[1].weight.grad, 2 * judge[1].weight.detach())


def test_a_schedule():
    assert [weight_at({0: 0.05, 30: 0.01}, step) for step in (0, 29, 30, 99)] == [0.05, 0.05, 0.01, 0.01]


def test_the_judge_sees_how_much_the_images_of_a_batch_differ():
    x = torch.randn(8, 3, 4, 4)
    assert with_deviation(x[:1].expand(8, -1, -1, -1))[:, 3].max() <= 1e-4 * 1.01
    spread = with_deviation(x)[:, 3]
    assert spread.min() > 0.3
    torch.testing.assert_close(with_deviation(2 * x)[:, 3], 2 * spread, rtol=1e-4, atol=0)
    assert Discriminator()(torch.randn(6, 1, 32, 32)).shape == (6, 1)


def test_styles_are_drawn_through_the_mapping(tmp_path):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    whole, small = stylegan2(), stylegan2(space="w")
    w = Styles(stylegan2_mapping(), (64,))(5, generator)
    with torch.no_grad():
        assert torch.equal(small(w), whole(z))
    half = Styles(stylegan2_mapping(), (64,), truncation=0.5)(5, torch.Generator().manual_seed(3))
    centre = Styles(stylegan2_mapping(), (64,), truncation=0)(5, torch.Generator().manual_seed(3))
    assert torch.equal(centre[0], centre[4])
    torch.testing.assert_close(half, (w + centre) / 2)
    for bad, message in (({"truncation": 2.0}, "expected 0 … 1"), ({"mapping": 3}, "is a int")):
        with pytest.raises(UsageError, match=message):
            Styles(**{"mapping": stylegan2_mapping(), "shape": (64,)} | bad)
    entry = {"kind": "styles", "mapping": "mpsearch.zoo:stylegan2_mapping", "shape": [64]}
    (tmp_path / "w.yaml").write_text(
        f"model: {{factory: 'mpsearch.zoo:stylegan2', options: {{space: w}}}}\ninputs: [{json.dumps(entry)}]\n"
    )
    run = Run(load_config(tmp_path / "w.yaml"), tmp_path / "run")
    assert torch.equal(run.inputs(5, 0)[0][0], Styles(stylegan2_mapping(), (64,))(5, torch.Generator().manual_seed(0)))
