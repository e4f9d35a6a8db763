"""What people's generators do: each of these once gave a wrong answer, changed a model, or died of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import mpsearch
from mpsearch import ArtifactError, ModelError, UsageError, export, find_layers, load_packed, quantized
from mpsearch.api import make_subject
from mpsearch.calibration import Calibration, outputs
from mpsearch.types import parse_formats

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def images(model, x=X):
    return outputs(model, Calibration.of([(x,)]))[0]


def test_loading_a_packed_file_leaves_the_original_of_a_parametrized_model_alone(tmp_path):
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), parametrizations.weight_norm(nn.Linear(5, 4))
    )
    files = export(model, {"0.weight": "w3", "1.weight": "w4"}, tmp_path, [(X,)], kinds=["packed"])
    before = images(model)
    loaded = load_packed(files["packed"], model)
    assert torch.equal(images(model), before)
    with quantized(model, {"0.weight": "w3", "1.weight": "w4"}):
        assert torch.equal(images(loaded), images(model))
    loaded.double()
    assert loaded(X.double()).dtype == torch.float64


def test_older_hooks_load_after_a_pass_with_gradients(tmp_path):
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5)), nn.utils.spectral_norm(nn.Linear(5, 4)))
    model(X)
    files = export(model, {"0.weight": "w3"}, tmp_path, [(X,)], kinds=["packed"])
    loaded = load_packed(files["packed"], model)
    with quantized(model, {"0.weight": "w3"}):
        torch.testing.assert_close(images(loaded), images(model), rtol=0, atol=0)
    assert loaded.double()(X.double()).shape == (8, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generators_export(tmp_path, dtype):
    model = nn.Linear(6, 5).to(dtype)
    files = export(model, {"weight": "w3"}, tmp_path, [(X.to(dtype),)], kinds=["packed"])
    with quantized(model, {"weight": "w3"}):
        assert torch.equal(images(load_packed(files["packed"], model), X.to(dtype)), images(model, X.to(dtype)))


def test_inputs_that_the_model_writes_to_stay_the_callers():
    class Writes(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2).relu_())

    x = X.clone()
    model = Writes(6, 4)
    first = mpsearch.allocate(model, [(x,)], effort="fast")
    assert torch.equal(x, X)
    assert mpsearch.allocate(model, [(x,)], effort="fast").bitmap == first.bitmap


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.second(checkpoint(lambda h: F.relu(self.first(h)), x.requires_grad_(), use_reentrant=reentrant))

    model = Saves()
    if reentrant:
        with pytest.raises(ModelError, match=r"first.weight changes the output but has no gradient .* 'perturbation'"):
            mpsearch.allocate(model, [(X,)], effort="fast")
        assert mpsearch.allocate(model, [(X,)], effort="fast", estimator="perturbation").bitmap
    else:
        subject = make_subject(model, [(X,)])
        formats = parse_formats(["w3"])
        from mpsearch.sensitivity import OnePass, Perturbation

        ratio = OnePass(probes=200)(subject, formats).values / Perturbation()(subject, formats).values
        assert (np.abs(np.log(ratio)) < 0.5).all()


def test_forward_passes_without_gradients():
    class Sealed(nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    class Inferred(nn.Linear):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    for kind in (Sealed, Inferred):
        model = kind(6, 4)
        assert find_layers(model, (X,))["weight"].macs == 24
        with pytest.raises(ModelError, match=r"runs without gradients .* use the estimator 'perturbation'"):
            mpsearch.allocate(model, [(X,)])
        assert mpsearch.allocate(model, [(X,)], estimator="perturbation").error.value > 0


def test_callers_in_inference_mode():
    model = nn.Linear(6, 4)
    expected = mpsearch.allocate(model, [(X,)], effort="fast")
    with torch.inference_mode():
        solution = mpsearch.allocate(model, [(X * 1.0,)], effort="fast")
        assert torch.is_inference_mode_enabled()
    assert solution.bitmap == expected.bitmap


class SpectralNorm(nn.Module):
    """The wrapper of published Self-Attention GANs: a power iteration on every call, the weight set as an attribute."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        weight = module.weight
        del module._parameters["weight"]
        module.register_parameter(
            "weight_u", nn.Parameter(F.normalize(torch.randn(len(weight)), dim=0), requires_grad=False)
        )
        module.register_parameter("weight_bar", nn.Parameter(weight.data))

    def forward(self, *args):
        u, w = self.module.weight_u, self.module.weight_bar
        v = F.normalize(w.data.flatten(1).T @ u.data, dim=0)
        u.data = F.normalize(w.data.flatten(1) @ v, dim=0)
        self.module.weight = w / (u @ w.flatten(1) @ v)
        return self.module.forward(*args)


def test_the_spectral_norm_wrapper_of_published_gans(snapshot):
    torch.manual_seed(0)
    model = nn.Sequential(SpectralNorm(nn.Linear(6, 16)), nn.ReLU(), SpectralNorm(nn.Linear(16, 4)))
    model(X)
    shot = snapshot(model)
    solution = mpsearch.allocate(model, [(X,)], ["bits<=4"], ["w2", "w4", "w8"], effort="fast")
    assert {k: v.clone() for k, v in model.state_dict().items()}.keys() == shot.before["state"].keys()
    shot.check()
    assert set(solution.bitmap) == {"0.module.weight_bar", "2.module.weight_bar"}
    assert find_layers(model, (X,))["0.module.weight_bar"].macs in range(96, 121)


class Equal(nn.Module):
    """The dense layer of published StyleGANs: the equalised learning rate multiplies when it is called."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)


def modulated_conv2d(x, weight, styles, up):
    """A weight for every sample, one grouped call."""
    n, c, height, width = x.shape
    weight = weight.reshape(1, *weight.shape[-4:]) * styles[:, None, :, None, None]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * c, height, width)
    if up:
        weight = weight.transpose(1, 2).flatten(0, 1)
        y = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1, groups=n)
    else:
        y = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n)
    return y.reshape(n, -1, *y.shape[2:])


class Published(nn.Module):
    """A layer of ``stylegan2-ada-pytorch`` (weights of four dimensions) or ``stylegan2-pytorch`` (of five)."""

    def __init__(self, inputs, outputs, up, leading):
        super().__init__()
        self.up, self.affine = up, Equal(6, inputs)
        self.weight = nn.Parameter(torch.randn(*leading, outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("noise_const", torch.randn(8 if up else 4, 8 if up else 4))

    def forward(self, x, w):
        y = modulated_conv2d(x, self.weight, self.affine(w), self.up)
        return F.leaky_relu(y + self.noise_strength * self.noise_const, 0.2)


class PublishedGenerator(nn.Module):
    def __init__(self, leading=()):
        super().__init__()
        self.const = nn.Parameter(torch.randn(5, 4, 4))
        self.conv0, self.conv1 = Published(5, 7, False, leading), Published(7, 3, True, leading)

    def forward(self, w):
        return self.conv1(self.conv0(self.const[None].expand(len(w), -1, -1, -1), w), w)


@pytest.mark.parametrize("leading", [(), (1,)])
def test_published_modulated_convolutions_with_a_weight_for_every_sample(leading, tmp_path, snapshot):
    torch.manual_seed(0)
    model = PublishedGenerator(leading)
    shot = snapshot(model)
    layers = find_layers(model, (X,))
    assert [layer.name for layer in layers] == [
        "conv0.weight", "conv0.affine.weight", "conv1.weight", "conv1.affine.weight",
    ]  # fmt: skip
    assert [(layer.channel_axis, layer.channels) for layer in layers] == [
        (len(leading), 7), (0, 5), (len(leading), 3), (0, 7),
    ]  # fmt: skip
    # kernel · inputs · outputs · output positions (ordinary) or input positions (transposed), for one sample
    assert [layer.macs for layer in layers] == [9 * 5 * 7 * 16, 6 * 5, 9 * 7 * 3 * 16, 6 * 7]
    assert [layer.act_elements for layer in layers] == [5 * 16, 6, 7 * 16, 6], (
        "the style is not what a convolution reads"
    )
    solution = mpsearch.allocate(model, [(X,)], ["bits<=4"], ["w2", "w3a8", "w4a8", "w8a8"], effort="fast")
    shot.check()
    files = export(model, solution.bitmap, tmp_path, [(X,)], kinds=["packed"])
    with quantized(model, solution.bitmap):
        expected = images(model)
    assert torch.equal(images(load_packed(files["packed"], PublishedGenerator(leading))), expected)
    assert (expected - images(model)).square().mean().item() == pytest.approx(solution.error.value, rel=1e-5)


def test_buffers_that_the_forward_pass_writes_are_put_back(snapshot):
    class Counts(nn.Linear):
        def __init__(self):
            super().__init__(6, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + 0.01 * self.calls

    model = Counts()
    shot = snapshot(model)
    mpsearch.allocate(model, [(X,), (X,)], effort="fast")
    shot.check()
    assert model.calls == 0


def test_buffers_that_are_replaced_resized_or_hung_on_a_graph_are_put_back(snapshot):
    class Careless(nn.Linear):
        def __init__(self):
            super().__init__(6, 4)
            for name in ("calls", "mean", "sized"):
                self.register_buffer(name, torch.zeros(2))

        def forward(self, x):
            y = super().forward(x)
            self.calls = self.calls + 1
            self.mean.mul_(0.9).add_(y.mean())
            self.sized.resize_(5).fill_(1)
            self.register_buffer("late", torch.ones(1))
            self.bias.requires_grad_(False)
            return y

    model = Careless()
    shot = snapshot(model)
    buffers = {name: id(value) for name, value in model.named_buffers()}
    mpsearch.allocate(model, [(X,)], effort="fast", estimator="perturbation")
    find_layers(model, (X,))
    shot.check()
    assert {name: id(value) for name, value in model.named_buffers()} == buffers
    assert model.mean.grad_fn is None


def test_one_tensor_under_two_tensor_names(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.out_weight = self.a.weight

        def forward(self, x):
            return F.relu(self.a(x)) @ self.out_weight

    model = Shared()
    layers = find_layers(model, (X,))
    assert len(layers) == 1
    files = export(model, {layers[0].name: "w2"}, tmp_path, [(X,)], kinds=["packed"])
    with quantized(model, {layers[0].name: "w2"}):
        assert torch.equal(images(load_packed(files["packed"], Shared())), images(model))


def test_a_tied_layer_may_be_called_by_any_of_its_names(tmp_path):
    from conftest import MODELS, build

    model, batches = build("attentive"), MODELS["attentive"][1]()
    first = export(model, {"left.weight": "w2"}, tmp_path / "a", batches, kinds="packed")
    second = export(model, {"right.weight": "w2"}, tmp_path / "b", batches, kinds="packed")
    assert first["packed"].read_bytes() == second["packed"].read_bytes()
    with pytest.raises(UsageError, match=r"right.weight is the same tensor as left.weight: it cannot be w3 and w2"):
        export(model, {"left.weight": "w2", "right.weight": "w3"}, tmp_path / "c", batches)


def test_a_packed_file_needs_the_whole_architecture(tmp_path):
    path = export(nn.Sequential(nn.Linear(6, 5)), {"0.weight": "w3"}, tmp_path, [(X,)], kinds="packed")["packed"]
    with pytest.raises(
        ArtifactError, match=r"does not fit the model: ValueError: 1.weight is missing; 1.bias is missing"
    ):
        load_packed(path, nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)))
    with pytest.raises(ArtifactError, match=r"does not fit the model"):
        load_packed(path, nn.Sequential(nn.Linear(1, 5)))


def test_attention_called_by_keywords_with_a_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            h = x[:, None].repeat(1, 3, 1)
            mask = torch.full((3, 3), float("-inf")).triu(1)
            return self.attention(attn_mask=mask, query=h, key=h * 2, value=h, need_weights=False)[0]

    model = Masked()
    layers = find_layers(model, (X,))
    assert layers["attention.in_proj_weight"].act_elements == 3 * 18
    assert mpsearch.allocate(model, [(X,)], ["bits<=5"], ["w4a8", "w8a8"], effort="fast").error.value > 0


def test_layers_that_read_a_list_take_weight_formats_only():
    class Fuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, parts):
            return sum(parts) @ self.weight.T

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse, self.last = Fuses(), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.fuse([x, x * 2]))

    solution = mpsearch.allocate(Outer(), [(X,)], ["bits<=5"], ["w4a8", "w5a8"], effort="fast")
    assert solution.bitmap["fuse.weight"].act_bits is None
    assert solution.bitmap["last.weight"].act_bits == 8


def test_float16_clips_instead_of_overflowing():
    model = nn.Linear(6, 4)
    model.weight.data[0, 0] = 1e6
    with quantized(model, {"weight": "fp16"}):
        assert model.weight.max() == 65504


def test_globs_and_kinds_may_be_one_string(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    assert [layer.name for layer in find_layers(model, (X,), include="0.*")] == ["0.weight"]
    assert [layer.name for layer in find_layers(model, (X,), exclude="0.*")] == ["1.weight"]
    assert set(export(model, {}, tmp_path, [(X,)], kinds="json")) == {"json"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mpsearch.allocate(len, [(X,)]), ModelError, "expected a torch.nn.Module"),
        (lambda: mpsearch.allocate(nn.Linear(6, 2), None), mpsearch.CalibrationError, "batches is a NoneType"),
        (lambda: mpsearch.allocate(nn.Linear(6, 2), [(X,)], seed="1"), UsageError, "the seed is '1'"),
        (lambda: mpsearch.allocate(nn.Linear(6, 2), [(X,)], effort=3), UsageError, "unknown effort 3"),
        (lambda: mpsearch.allocate(nn.Linear(6, 2), [(X,)], budgets=[3]), UsageError, "cannot read the budget 3"),
        (lambda: mpsearch.allocate(nn.Linear(6, 2), [(X,)], budgets=["bits<=1e999"]), UsageError, "finite"),
    ],
)
def test_arguments_of_the_wrong_kind(call, error, message):
    with pytest.raises(error, match=message):
        call()
