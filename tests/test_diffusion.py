"""The sampler is diffusers' own; a sampler and its steps are searched like any other generator."""

import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from mpsearch import ArtifactError, QualityReport, UsageError, estimate_strata, validate
from mpsearch.api import make_subject
from mpsearch.calibration import Calibration
from mpsearch.config import load_config
from mpsearch.features import frechet_distance, moments
from mpsearch.inputs import Trajectory, draw
from mpsearch.layers import find_layers
from mpsearch.quality import Reference
from mpsearch.quant import observe
from mpsearch.run import Run
from mpsearch.sensitivity import OnePass, Perturbation, by_stratum
from mpsearch.types import BitMap, parse_formats
from mpsearch.zoo import (
    WEIGHTS,
    Denoiser,
    Sampler,
    classifier,
    diffusion,
    diffusion_step,
    fashion_features,
    load_generator,
    reference_path,
    sampler,
)

SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def noise_of(count, seed=0, size=8):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    """Timestep embedding, attention, concatenated skips; a tenth of a second for all that is done with it here."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=2, attention_head_dim=4,
        ).eval()  # fmt: skip


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "linspace", "clip_sample": False, "beta_schedule": "scaled_linear"},
        {"timestep_spacing": "trailing", "clip_sample_range": 0.5, "num_train_timesteps": 100},
    ],
)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_sampler_is_the_loop_of_diffusers(unet, predicts, options, steps):
    schedule = {**options, "prediction_type": predicts}
    mine, scheduler = Sampler(unet, schedule, steps), DDIMScheduler(**schedule)
    scheduler.set_timesteps(steps)
    x, seen = noise_of(3), []
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen.append((x, int(t)))
            x = scheduler.step(unet(x, t).sample, int(t), x, eta=0.0).prev_sample
        torch.testing.assert_close(mine(noise_of(3)), x.clamp(-1, 1), rtol=1e-5, atol=1e-5)
        found = mine.trajectory(noise_of(3))
    assert [t for _, t in found] == [t for _, t in seen]
    for (one, _), (other, _) in zip(found, seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_step_is_one_call_of_the_unet(unet):
    x, t = noise_of(3), torch.tensor([999, 3, 500])
    with torch.no_grad():
        assert torch.equal(Denoiser(unet)(x, t), unet(x, t).sample)
    names = {name for name, _ in Denoiser(unet).named_parameters()}
    assert names == {name for name, _ in Sampler(unet, SCHEDULE, 2).named_parameters()}


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_trajectory_of_no_steps(unet, steps):
    with pytest.raises(UsageError, match=rf"^a trajectory of {steps} steps: a sampler takes 1 … 1000 of them$"):
        Sampler(unet, SCHEDULE, steps)
    with pytest.raises(UsageError, match="the schedule asks for dynamic thresholding"):
        Sampler(unet, {**SCHEDULE, "thresholding": True}, 5)


def test_zero_steps_in_a_config_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"^a trajectory of 0 steps"):
        load_generator("mpsearch.zoo:diffusion", None, {"steps": 0}, tmp_path)


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for factory in ("diffusion", "diffusion_step"):
        with pytest.raises(UsageError, match=r"^.* pip install 'mpsearch\[diffusers\]'$"):
            load_generator(f"mpsearch.zoo:{factory}", None, {}, tmp_path)


def test_a_pipeline_that_diffusers_saved(unet, tmp_path):
    DDIMPipeline(unet, DDIMScheduler(**SCHEDULE)).save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(sampler(tmp_path, 5)(noise_of(2)), Sampler(unet, SCHEDULE, 5)(noise_of(2)))
    assert len(load_generator("mpsearch.zoo:sampler", None, {"folder": str(tmp_path)}, tmp_path).timesteps) == 20
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"scheduler_config.json cannot be read"):
        sampler(tmp_path)


# A sampler calls every layer once a step. Everything that looks at layers must look at all of the calls.


@pytest.fixture(scope="module")
def subject(unet):
    some = ("*conv_in*", "*time_embedding*", "*time_emb_proj*", "*conv_shortcut*", "*to_q*", "*to_out*", "*conv_out*")
    return make_subject(Sampler(unet, SCHEDULE, 3), [(noise_of(6, seed),) for seed in (1, 2)], include=some)


def test_macs_are_those_of_all_calls(unet, subject):
    once = find_layers(Denoiser(unet), (noise_of(2), torch.tensor([5, 6])))
    for layer in subject.layers:
        assert layer.macs == 3 * once[layer.name].macs > 0
        assert layer.act_elements == 3 * once[layer.name].act_elements
        assert layer.largest_input == once[layer.name].largest_input


def test_one_pass_through_all_steps_predicts_the_true_error(subject):
    formats = parse_formats(["w6", "w8a8"])
    table, truth = OnePass(probes=64)(subject, formats), Perturbation()(subject, formats)
    for column, format in enumerate(table.formats):
        mine, real = (found.values[:, column] for found in (table, truth))
        assert mine.sum() == pytest.approx(real.sum(), rel=0.3), format
        assert np.corrcoef(np.log(mine), np.log(real))[0, 1] > 0.95, format


def test_kept_activations_change_no_number(unet, subject):
    kept, plain = (make_subject(Sampler(unet, SCHEDULE, 3), subject.calibration.batches[:1]) for _ in range(2))
    plain._reuse._capacity = 0
    names = [layer.name for layer in kept.layers]
    base = dict.fromkeys(names, "w6a8")
    changes = [{}, *({name: format} for name, format in zip(names[10::20], ("w8a8", "w3", "w6"), strict=False))]
    for change in changes:
        assert kept.error(BitMap(base | change)).samples == plain.error(BitMap(base | change)).samples
    assert kept._reuse.served >= 10 * (len(changes) - 1)
    assert plain._reuse.served == 0
    one_step = 51 * 6 * 8 * 64 * 4  # bytes: no layer returns more than 8 channels
    assert kept._reuse._kept
    assert sum(tensor.nbytes for tensor in kept._reuse._kept.values()) < one_step  # later steps follow from all layers


def test_activation_ranges_see_every_step_alike():
    """A layer that reads 1 … 4 in four calls gets the range of all, from as many values as another layer keeps."""

    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return sum(self.layer(x.sign() * k) for k in (1.0, 2.0, 3.0, 4.0))

    calibration = Calibration.of([(torch.randn(30_000, 1),) for _ in range(3)])
    seen = observe(Steps(), calibration, {"layer.weight": ["layer.weight"]}, {"layer.weight": ()})[1]["layer.weight"]
    (span,), (values,) = seen.grid(8).ranges, seen.values()
    assert (span.low, span.high) == (-4, 4)
    assert len(values) <= 2**16
    shares = [(values.abs() == k).double().mean().item() for k in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)


def test_trajectories_are_spread_over_the_timesteps(unet):
    made = Sampler(unet, SCHEDULE, 4)
    times = made.timesteps.tolist()
    ((x, t),) = draw([Trajectory(made, (1, 8, 8))], 10, 10, seed=5)
    assert t.tolist() == [times[i % 4] for i in range(10)]
    noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        steps = made.trajectory(noise)
    for i in range(10):
        torch.testing.assert_close(x[i], steps[i % 4][0][i], rtol=1e-4, atol=1e-5)
    parts = draw([Trajectory(made, (1, 8, 8))], 70, 20, seed=5)
    assert torch.cat([t for _, t in parts]).tolist() == [times[i % 4] for i in range(70)]
    with pytest.raises(UsageError, match=r"^a UNet2DModel is no sampler: it has no method trajectory\(noise\)$"):
        Trajectory(unet, (1, 8, 8))


FACTORY = """
from diffusers import UNet2DModel
from mpsearch.zoo.diffusion import Denoiser, Sampler
import torch

def unet(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=2,
        )

def step():
    return Denoiser(unet())

def sampler(seed=3, steps=4):
    return Sampler(unet(seed), {"prediction_type": "v_prediction"}, steps)
"""


def config_of(folder, sampler):
    (folder / "my_unet.py").write_text(FACTORY)
    return load_config(
        model={"factory": "my_unet.py:step"},
        inputs=[{"kind": "trajectory", "sampler": sampler, "shape": [1, 8, 8]}],
        samples={"calibration": 8, "heldback": 8, "distances": 80, "batch": 4},
        base=folder,
        layers={"include": ["*conv1*", "*time_emb_proj*"]},
        formats=["w2", "w4", "w8"],
        effort="fast",
    )


def test_single_steps_are_searched_on_the_trajectories_of_their_sampler(tmp_path):
    run = Run(config_of(tmp_path, "my_unet.py:sampler"), tmp_path / "out")
    ((_, t), _) = run.inputs(8, 0)
    assert t.tolist() == [750, 500, 250, 0]
    assert run.solution.costs["bits"] <= 4
    assert run.quality.mse.value > 0
    two, other = (
        Run(config_of(tmp_path, {"factory": "my_unet.py:sampler", "options": options}), tmp_path / name)
        for name, options in (("two", {"steps": 2}), ("other", {"seed": 4}))
    )
    assert {int(t) for t in two.inputs(8, 0)[0][1]} == {500, 0}
    assert len({run.workload.identity, two.workload.identity, other.workload.identity}) == 3


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("my_unet.py:step", r"a Denoiser is no sampler: it has no method trajectory\(noise\)"),
        ({"options": 3}, r"inputs.0.sampler: "),
        (7, r"inputs.0.sampler: "),
        ({"diffusers": "folder"}, r"inputs.0.sampler: a folder is an option of the factory mpsearch.zoo:sampler"),
        ({"factory": "my_unet.py:sampler", "options": {"steps": 0}}, r"a trajectory of 0 steps"),
    ],
)
def test_samplers_that_are_none(tmp_path, sampler, message):
    with pytest.raises(UsageError, match=message):
        Run(config_of(tmp_path, sampler), tmp_path / "out").inputs(4, 0)


def test_the_shipped_folder_is_a_pipeline_of_diffusers():
    pipeline = DDIMPipeline.from_pretrained(WEIGHTS / "diffusion")
    whole, step, noise = diffusion(steps=3), diffusion_step(), noise_of(2, size=32)
    pipeline.scheduler.set_timesteps(3)
    x = noise
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            prediction = pipeline.unet(x, t).sample
            torch.testing.assert_close(step(x, t.expand(2)), prediction)
            x = pipeline.scheduler.step(prediction, int(t), x, eta=0.0).prev_sample
        torch.testing.assert_close(whole(noise), x.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_the_shipped_sampler_draws_clothes():
    images, reference = noise_of(128, size=32), moments(Reference.load(reference_path()).features)
    before = frechet_distance(moments(fashion_features(images.clamp(-1, 1))), reference)
    with torch.no_grad():
        images = torch.cat([diffusion()(noise) for noise in images.split(16)])
    features = fashion_features(images)
    assert images.abs().max() <= 1
    assert classifier().head(features).argmax(1).bincount(minlength=10).min() > 0
    after = frechet_distance(moments(features), reference)
    assert after < 5
    assert after < before / 20


def test_timesteps_are_drawn_in_proportion_to_their_weights(unet):
    made = Sampler(unet, SCHEDULE, 4)
    times = made.timesteps.tolist()
    ((_, t),) = draw([Trajectory(made, (1, 8, 8), weights=(3.0, 0.0, 1.0, 2.0))], 40, 40, seed=5)
    assert [(t == time).sum().item() for time in times] == [20, 0, 7, 13]
    assert [(t[:6] == time).sum().item() for time in times] == [3, 0, 1, 2], "in any run of samples"
    with pytest.raises(UsageError, match="2 weights for a sampler of 4 steps"):
        draw([Trajectory(made, (1, 8, 8), weights=(1.0, 1.0))], 4, 4, seed=5)
    for weights in ((), (0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(UsageError, match="weights of timesteps"):
            Trajectory(made, (1, 8, 8), weights=weights)


def test_damage_of_every_timestep_adds_up_to_that_of_all(unet):
    made = Sampler(unet, SCHEDULE, 3)
    batches = draw([Trajectory(made, (1, 8, 8), weights=(1.0, 1.0, 2.0))], 16, 5, seed=5)
    formats, model = parse_formats(["w2", "w4a8"]), Denoiser(unet)
    some = {"include": ["unet.conv_in.weight", "unet.time_embedding.*"]}
    subject = make_subject(model, batches, **some)
    whole, parts = Perturbation()(subject, formats), by_stratum(Perturbation(), subject, formats)
    assert sorted(map(int, parts)) == sorted(made.timesteps.tolist())
    counts = {str(t): (torch.cat([b[1] for b in batches]) == t).double().mean().item() for t in made.timesteps.tolist()}
    total = sum(counts[name] * table.values for name, table in parts.items())
    np.testing.assert_allclose(total, whole.values, rtol=1e-4)
    assert not np.allclose(*(table.values for table in list(parts.values())[:2]), rtol=0.1)
    with pytest.raises(UsageError, match="no class and no timestep"):
        estimate_strata(torch.nn.Linear(3, 3), [(torch.randn(4, 3),)], ["w4"])
    assert list(estimate_strata(model, batches, ["w4"], probes=2)) == list(parts)


def test_the_paired_error_of_every_timestep_is_reported(unet):
    made = Sampler(unet, SCHEDULE, 3)
    batches = draw([Trajectory(made, (1, 8, 8))], 12, 4, seed=5)
    found = validate(Denoiser(unet), {"unet.conv_in.weight": "w2"}, batches)
    assert sorted(map(int, found.strata)) == sorted(made.timesteps.tolist())
    assert np.mean([part.value for part in found.strata.values()]) == pytest.approx(found.mse.value)
    assert QualityReport.from_json(found.to_json()) == found
    assert not validate(made, {"unet.conv_in.weight": "w2"}, [(noise_of(4),)]).strata
