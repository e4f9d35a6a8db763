"""Recovery ``batch_norm``: running statistics under the map, so that norms give what they gave; and biases likewise."""

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import UsageError
from mpsearch.calibration import Calibration
from mpsearch.export import load_packed
from mpsearch.model import substituted
from mpsearch.quant import Recovered, WeightBank
from mpsearch.recovery import BatchNorm
from mpsearch.recovery.trial import Trial

MAP = {"0.weight": "w2a4", "3.weight": "w2"}


def normed():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3, bias=False)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(6, affine=False))
    batches = [(torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(8)]
    for batch in batches[:4]:
        model(*batch)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    return model.eval(), batches


def moments(model, batches, path):
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    handle.remove()
    values = torch.cat(found).transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1)


def test_the_last_norm_gives_the_moments_that_it_gave(snapshot):
    model, batches = normed()
    whole = mpsearch.quant.with_ranges(model, mpsearch.BitMap(MAP), batches, mpsearch.quant.WeightBank(model))
    shot = snapshot(model)
    bank = mpsearch.recover(model, whole, batches, "batch_norm")
    shot.check()
    assert {"1.running_mean", "1.running_var", "4.running_mean", "4.running_var"} <= set(bank.tensors)
    wanted = moments(model, batches[:6], "4")
    off = []
    for weights in (None, bank):
        with mpsearch.quantized(model, whole, bank=weights) as small:
            own = moments(small, batches[:6], "4")
        off.append(max((a - b).abs().max().item() for a, b in zip(own, wanted, strict=True)))
    assert off[1] < 0.25 * off[0]


def test_statistics_are_written_with_the_generator(tmp_path):
    model, batches = normed()
    bank = mpsearch.recover(model, MAP, batches, "batch_norm")
    files = mpsearch.export(model, MAP, tmp_path, batches, bank=bank)
    whole = mpsearch.read_map(files["json"])
    with mpsearch.quantized(model, whole, bank=bank) as small, torch.no_grad():
        expected = small(*batches[0])
    with torch.no_grad():
        torch.testing.assert_close(load_packed(files["packed"], model)(*batches[0]), expected, rtol=1e-5, atol=1e-5)


def test_training_after_it_keeps_the_statistics():
    model, batches = normed()
    first = mpsearch.recover(model, MAP, batches, "batch_norm")
    both = mpsearch.recover(model, MAP, batches, "distil", steps=10, bank=first)
    assert torch.equal(both.tensors["1.running_var"], first.tensors["1.running_var"])


def test_a_generator_without_norms_stays_as_it_is():
    model, batches = nn.Sequential(nn.Conv2d(4, 3, 3)).eval(), normed()[1]
    bank = mpsearch.recover(model, {"0.weight": "w2"}, batches, "batch_norm")
    assert bank.tensors == {}


def test_a_layer_without_a_bias_is_corrected_by_the_norm_after_it():
    model, batches = normed()
    bank = mpsearch.recover(model, {"0.weight": "w1"}, batches, "bias")
    assert set(bank.tensors) == {"1.bias"}


@pytest.mark.parametrize("method", ["bias", "batch_norm"])
def test_bad_options_are_one_line(method):
    model, batches = normed()
    with pytest.raises(UsageError, match=f"{method} needs lessons of 1 or more, not 0"):
        mpsearch.recover(model, MAP, batches, method, lessons=0)


def test_a_layer_that_is_twice_as_loud_has_four_times_the_variance():
    model, batches = normed()
    bitmap = mpsearch.BitMap({"0.weight": "w8"})
    stored = WeightBank(model).quantized("0.weight", bitmap["0.weight"])
    loud = Recovered({"0.weight": stored.with_learnable({"scale": 2 * stored.scale})})
    trial = Trial(model, bitmap, WeightBank(model).recovered(bitmap, loud), Calibration.of(batches))
    BatchNorm()(trial)
    assert trial.error < 1e-3 * trial.start
    found, norm = trial.best.tensors, model[1]
    torch.testing.assert_close(found["1.running_var"], 4 * (norm.running_var + norm.eps), rtol=0.02, atol=0)
    torch.testing.assert_close(found["1.running_mean"], 2 * norm.running_mean, rtol=0.05, atol=0.02)


def test_a_channel_that_never_varies_and_a_scale_of_zero_do_no_harm():
    model, batches = normed()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[1].weight[5] = 0
    bitmap = mpsearch.BitMap({"0.weight": "w2", "3.weight": "w2"})
    trial, found = Trial(model, bitmap, WeightBank(model), Calibration.of(batches)), []
    trial.show = found.append
    BatchNorm()(trial)
    assert len(found) == 2
    for own in found:
        assert all(value.isfinite().all() for value in own.tensors.values())
        assert own.tensors["1.running_var"].min() >= 0
        torch.testing.assert_close(own.tensors["1.running_var"][3], model[1].running_var[3])


def test_buffers_are_put_in_place_and_taken_out_again(snapshot):
    model, ((x,), *_) = normed()
    shot = snapshot(model)
    with torch.no_grad(), substituted(model, {"1.running_mean": torch.full((12,), 3.0)}):
        moved = model[:2](x)
    shot.check()
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    shift = (3 - model[1].running_mean) * scale
    with torch.no_grad():
        torch.testing.assert_close(moved, model[:2](x) - shift[:, None, None], rtol=1e-4, atol=1e-5)
