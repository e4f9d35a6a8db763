import numpy as np
import pytest
import torch
from torch import nn

from mpsearch import Layers, ModelError, UsageError, find_layers
from mpsearch.zoo import sagan


def names(layers):
    return [layer.name for layer in layers]


def test_every_kind_of_tensor_is_found(case, snapshot):
    model, batches = case
    shot = snapshot(model)
    layers = find_layers(model, batches[0])
    shot.check()
    assert all(layer.macs > 0 for layer in layers)
    assert all(len(layer.shape) >= 2 for layer in layers)
    state = {id(v): v for v in model.state_dict(keep_vars=True).values()}
    assert layers.rest_bytes + sum(layer.float_bytes for layer in layers) == sum(
        v.numel() * v.element_size() for v in state.values()
    )


def test_transposed_convolutions_have_their_channels_on_axis_1(deconv):
    model, batches = deconv
    layers = find_layers(model, batches[0])
    assert [(layer.channel_axis, layer.channels) for layer in layers] == [(1, 8), (1, 5), (0, 3)]
    # MACs by hand: kernel · inputs · outputs · input positions (transposed) or output positions (ordinary)
    assert [layer.macs for layer in layers] == [6 * 8 * 16 * 1, 8 * 5 * 16 * 16, 5 * 3 * 9 * 64]
    assert [layer.act_elements for layer in layers] == [6, 8 * 16, 5 * 64]


def test_modulated_weights_have_their_channels_on_axis_1():
    from conftest import MODELS, build

    layers = find_layers(build("styled"), MODELS["styled"][1]()[0])
    assert names(layers) == ["conv1.weight", "conv1.style.weight", "conv2.weight", "conv2.style.weight"]
    assert (layers["conv1.weight"].channel_axis, layers["conv1.weight"].channels) == (1, 6)
    assert layers["conv1.weight"].macs == 4 * 6 * 9 * 64


def test_attention_tied_and_computed_weights():
    from conftest import MODELS, build

    layers = find_layers(build("attentive"), MODELS["attentive"][1]()[0])
    assert names(layers) == [
        "embed.weight", "attention.in_proj_weight", "attention.out_proj.weight", "first.weight", "second.weight",
        "third.weight", "left.weight",
    ]  # fmt: skip
    assert layers["left.weight"].aliases == ("right.weight",)
    assert layers["left.weight"].macs == 2 * 16 * 16 * 4
    assert layers["attention.out_proj.weight"].act_elements == 0, "it is never called as a module"
    assert layers["attention.in_proj_weight"].macs == 3 * 16 * 16 * 4, "products of activations are not counted"
    assert layers["attention.out_proj.weight"].macs == 16 * 16 * 4
    assert layers["second.weight"].state_keys == ("second.weight_orig", "second.weight_u", "second.weight_v")


def test_a_layer_used_twice_counts_twice():
    from conftest import MODELS, build

    layers = find_layers(build("volume"), MODELS["volume"][1]()[0])
    assert layers["line.weight"].macs == 2 * (4 * 1 * 3 * 8)
    assert layers["line.weight"].act_elements == 2 * (2 * 8)
    assert layers["cube.weight"].kind == "Conv3d"


def test_the_embedded_generator_has_the_promised_size():
    layers = find_layers(sagan(), (torch.zeros(1, 64),))
    assert 12 <= len(layers) <= 25
    assert 250_000 <= layers.numel <= 1_000_000


def test_globs(deconv):
    model, batches = deconv
    assert names(find_layers(model, batches[0], include=["*.0.*", "*.5.*"])) == ["main.0.weight", "main.5.weight"]
    assert names(find_layers(model, batches[0], exclude=["main.0.weight"])) == ["main.3.weight", "main.5.weight"]
    excluded = find_layers(model, batches[0], exclude=["main.0.weight"])
    assert excluded.rest_bytes - find_layers(model, batches[0]).rest_bytes == 6 * 8 * 16 * 4


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_an_unmatched_glob_names_the_closest_layer(deconv, option):
    model, batches = deconv
    with pytest.raises(UsageError, match=r"'main.3.wieght' matches no layer; the closest is 'main.3.weight'"):
        find_layers(model, batches[0], **{option: ["main.3.wieght"]})


def test_globs_that_leave_nothing_are_refused(deconv):
    model, batches = deconv
    with pytest.raises(UsageError, match="leave no layer of 3"):
        find_layers(model, batches[0], exclude=["*"])


def test_a_model_without_weights_is_refused():
    with pytest.raises(UsageError, match="no quantizable tensor"):
        find_layers(nn.ReLU(), (torch.zeros(1, 2),))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(deconv, value, snapshot):
    model, batches = deconv
    with torch.no_grad():
        model.main[3].weight[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"main.3.weight holds 1 NaN or infinite values of 640"):
        find_layers(model, batches[0])


def test_json_round_trip(case):
    model, batches = case
    layers = find_layers(model, batches[0])
    assert Layers.from_json(layers.to_json()) == layers


class _Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returns no floating-point tensor"),
        ({"a": "text"}, "returns no floating-point tensor"),
        (torch.zeros(2, dtype=torch.int64), "returns no floating-point tensor"),
        (torch.tensor(1.0), "expected a batch of images"),
        (torch.full((2, 3), np.nan), "returns 6 NaN or infinite values of 6"),
    ],
)
def test_outputs_that_are_no_images_are_refused(output, message):
    with pytest.raises(ModelError, match=message):
        find_layers(_Returns(output), (torch.zeros(2, 2),))


def test_a_failing_forward_names_the_shapes(deconv):
    model, _ = deconv
    with pytest.raises(ModelError, match=r"fails on inputs of shape \(2, 9\): "):
        find_layers(model, (torch.zeros(2, 9),))
