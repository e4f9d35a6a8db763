"""Inputs that a generator has a say in: chosen by clusters, matched to statistics, moved to where a map is worst."""

import inspect

import numpy as np
import pytest
import torch
from conftest import MODELS, build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpsearch
from mpsearch import ModelError, QualityReport, UsageError
from mpsearch.calibration import Calibration, outputs, paired_errors
from mpsearch.config import load_config
from mpsearch.features import pooled_pixels
from mpsearch.inputs import (
    REFINERS,
    Box,
    Cluster,
    Constant,
    Integers,
    Normal,
    Shell,
    Statistics,
    Trajectory,
    Uniform,
    draw,
    regions_of,
)
from mpsearch.inputs.cluster import apportioned, k_means
from mpsearch.inputs.columns import joined
from mpsearch.inputs.statistics import mismatch, stored
from mpsearch.model import evaluating
from mpsearch.run import Run
from mpsearch.workload import DISTANCES, HELDBACK
from mpsearch.zoo import sagan


class Translator(nn.Module):
    """Reads images, remembers what it read in training."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.norm2 = nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 1, 4, 2, 1)

    def forward(self, x):
        h = torch.relu_(self.norm1(self.first(x)))
        return torch.tanh(self.up(torch.relu_(self.norm2(self.down(h)))))


def pictures(count, seed):
    """Smooth blobs in -1 … 1."""
    coarse = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=16, mode="bilinear").tanh()


@pytest.fixture(scope="module")
def translator():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Translator().train()
        for seed in range(60):
            model(pictures(32, seed))
    return model.eval()


def noise(count=16, seed=0):
    return draw([Uniform((1, 16, 16), -1.0, 1.0)], count, 8, seed)


def latents(count=64, seed=0):
    return draw([Normal((6,))], count, 16, seed)


SHORT = {"cluster": Cluster(pool=4), "statistics": Statistics(steps=8, low=-1.0, high=1.0)}


@pytest.mark.parametrize("name", REFINERS)
def test_every_refiner_keeps_the_contract(name, translator, snapshot):
    """A new refiner in the registry is tested here: count, shapes, determinism, the model as it was."""
    refiner = SHORT[name]
    assert isinstance(refiner, REFINERS[name])
    assert list(inspect.signature(refiner).parameters) == ["model", "batches", "count", "generator"]
    count, shot = 6, snapshot(translator)
    drawn = noise(count * refiner.pool)
    before = [tensor.clone() for tensor in joined(drawn)]
    first, second = (refiner(translator, drawn, count, torch.Generator().manual_seed(3)) for _ in range(2))
    shot.check()
    assert all(torch.equal(a, b) for a, b in zip(joined(drawn), before, strict=True))
    (one,), (two,) = joined(first), joined(second)
    assert one.shape == (count, 1, 16, 16)
    assert torch.equal(one, two)
    assert len(first[0][0]) == min(count, len(drawn[0][0]))
    assert not one.requires_grad


def distance(model, batches):
    with evaluating(model), torch.no_grad():
        return np.mean([mismatch(model, stored(model), batch).item() for batch in batches])


def test_inputs_are_made_that_match_the_stored_statistics(translator):
    drawn = noise()
    made = Statistics(steps=100, low=-1.0, high=1.0)(translator, drawn, 16, torch.Generator())
    assert distance(translator, drawn) > 50 * distance(translator, made)
    assert all(batch[0].min() >= -1 and batch[0].max() <= 1 for batch in made)
    real = [(pictures(16, 999),)]
    assert distance(translator, real) < distance(translator, drawn) / 50, "the measure knows real inputs"

    def range_of(batches):
        solution = {"up.weight": "w4a4", "down.weight": "w4a4"}
        with mpsearch.quantized(translator, solution, batches):
            quantized = outputs(translator, Calibration.of(real))
        return (quantized[0] - outputs(translator, Calibration.of(real))[0]).square().mean().item()

    assert range_of(made) < range_of(drawn), "their activation ranges fit real inputs better"


def test_the_distance_to_stored_statistics_by_hand():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([4.0, 4.0]))
    x = torch.tensor([[[[-1.0, 1.0]], [[-2.0, 2.0]]]])  # means 0 and 0, deviations 1 and 2
    with evaluating(norm):
        found = mismatch(norm, stored(norm), (x,)).item()
    variance = 4 + 0.01 * 4
    deviations = [(d / variance**0.5 - 1) ** 2 for d in (1, 2)]
    assert found == pytest.approx((1 / variance + sum(deviations)) / 2, rel=1e-5)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv(x)


class Blind(Translator):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.InstanceNorm2d(1)), {"low": -1.0}, UsageError,
         "stored statistics, such as batch norm, and the generator has none: give it real inputs, of kind images or"),
        (Unused(), {"low": -1.0}, UsageError, "no layer with stored statistics is called"),
        (Translator(), {}, UsageError, r"drawn in -\S+ … \S+ leave the 0 … 1 of statistics: set its low and high"),
        (Translator(), {"argument": 1}, UsageError, "moves argument 1, which is no floating-point input"),
        (Blind(), {"low": -1.0}, ModelError, "inputs have no gradient"),
    ],
)  # fmt: skip
def test_generators_whose_statistics_cannot_be_matched(model, options, error, message):
    with pytest.raises(error, match=message) as caught:
        Statistics(steps=2, **options)(model, noise(4), 4, torch.Generator())
    assert "\n" not in str(caught.value)


def quantization_error(features, chosen):
    """Mean squared distance of all features to the nearest chosen one."""
    return torch.cdist(features, chosen).amin(1).square().mean().item()


def test_clusters_stand_for_the_pool_better_than_chance(deconv):
    model, _ = deconv
    pool = latents(256)
    features = torch.cat([pooled_pixels(images) for images in outputs(model, Calibration.of(pool))])

    def error_of(z):
        images = outputs(model, Calibration.of([(z,)]))[0]
        return quantization_error(features, pooled_pixels(images))

    (everything,) = joined(pool)
    chance = [
        error_of(everything[torch.randperm(256, generator=torch.Generator().manual_seed(s))[:16]]) for s in range(9)
    ]
    for seed in range(3):
        (chosen,) = joined(Cluster(pool=16)(model, pool, 16, torch.Generator().manual_seed(seed)))
        assert len(torch.unique(chosen, dim=0)) == 16, "no sample twice"
        assert (chosen[:, None] == everything).all(2).any(1).all(), "of the pool"
        assert error_of(chosen) < min(chance)


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(5, 6), nn.Linear(6, 64)

    def forward(self, z, label):
        return self.linear(z * self.table(label)).view(-1, 1, 8, 8)


@pytest.mark.parametrize("count", [5, 13, 20])
def test_classes_stay_balanced_in_a_chosen_set(count):
    pool = draw([Normal((6,)), Integers(5)], count * 4, 8, 0)
    chosen = joined(Cluster(pool=4)(Conditional(), pool, count, torch.Generator().manual_seed(0)))
    numbers = chosen[1].bincount(minlength=5)
    assert numbers.sum() == count
    assert numbers.max() - numbers.min() <= 1
    rows = {tuple(z.tolist()): int(label) for z, label in zip(*joined(pool), strict=True)}
    assert all(rows[tuple(z.tolist())] == label for z, label in zip(*chosen, strict=True)), "a latent keeps its class"


class Halving:
    """A sampler of three steps."""

    def trajectory(self, noise):
        return [(noise / 2**step, 900 - step) for step in range(3)]


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) / t[:, None, None, None]


def test_every_timestep_of_a_trajectory_keeps_its_share():
    pool = draw([Trajectory(Halving(), (1, 8, 8))], 60, 8, 0)
    _, times = joined(Cluster(pool=5)(Step(), pool, 12, torch.Generator().manual_seed(0)))
    assert times.unique(return_counts=True)[1].tolist() == [4, 4, 4]
    assert regions_of([Trajectory(Halving(), (1, 8, 8)), Normal((2,))]) == [None, None, Shell()]


def test_few_clusters_get_samples_in_proportion_to_their_sizes():
    """Three clouds of 60, 30 and 10 per cent."""
    shift = torch.tensor([0.0] * 120 + [40.0] * 60 + [90.0] * 20)
    values = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + shift[:, None]
    batches = Cluster(clusters=3)(
        nn.Identity(), [(part,) for part in values.split(32)], 20, torch.Generator().manual_seed(0)
    )
    (chosen,) = joined(batches)
    middle = chosen.mean(1)
    assert [(middle < 20).sum(), ((middle > 20) & (middle < 65)).sum(), (middle > 65).sum()] == [12, 6, 2]


def test_equal_samples_can_be_chosen_from_too():
    (chosen,) = joined(Cluster()(nn.Identity(), [(torch.ones(40, 3),)], 7, torch.Generator()))
    assert torch.equal(chosen, torch.ones(7, 3))
    with pytest.raises(UsageError, match="cluster is to choose 7 of 6 samples: draw more"):
        Cluster()(nn.Identity(), [(torch.ones(6, 3),)], 7, torch.Generator())


def test_k_means_finds_separate_clouds():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).double()
    x = centres.repeat(30, 1) + 0.1 * torch.randn(90, 2, generator=torch.Generator().manual_seed(0)).double()
    found = k_means(x, 3, torch.Generator().manual_seed(0))
    assert torch.cdist(centres, found).amin(1).max() < 0.1


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_seats_are_given_in_proportion(sizes, data):
    least = data.draw(st.integers(0, 1))
    count = data.draw(st.integers(least * len(sizes), sum(sizes)))
    shares = apportioned(sizes, count, least)
    assert sum(shares) == count
    assert all(least <= share <= size for share, size in zip(shares, sizes, strict=True))
    if len(set(sizes)) == 1:
        assert max(shares) - min(shares) <= 1


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 200), st.integers(0, 99))
def test_classes_are_equal_in_number_as_far_as_the_count_allows(classes, count, seed):
    numbers = Integers(classes)(count, torch.Generator().manual_seed(seed)).bincount(minlength=classes)
    assert numbers.max() - numbers.min() <= 1


def gaps(model, bitmap, batches, ranges):
    """Squared error of every sample under a map whose ranges were fitted on other inputs."""
    inputs = Calibration.of(batches)
    before = outputs(model, inputs)
    with mpsearch.quantized(model, bitmap, ranges):
        return torch.cat([paired_errors(model, inputs, index, images) for index, images in enumerate(before)])


@pytest.mark.parametrize("kind", MODELS)
def test_worst_inputs_are_worse_and_of_the_same_norm(kind, snapshot):
    model, batches = build(kind), MODELS[kind][1]()
    layers = mpsearch.find_layers(model, batches[0])
    bitmap = {layer.name: "w4a6" if layer.act_elements else "w4" for layer in layers}
    shot = snapshot(model)
    worst, again = (mpsearch.worst_case(model, bitmap, batches, steps=6, seed=0) for _ in range(2))
    shot.check()
    for one, two, start in zip(worst, again, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        for a, b in zip(one, start, strict=True):
            assert not a.requires_grad
            torch.testing.assert_close(a.reshape(len(a), -1).norm(dim=1), b.reshape(len(b), -1).norm(dim=1))
    chance, found = gaps(model, bitmap, batches, batches), gaps(model, bitmap, worst, batches)
    assert (found >= chance * (1 - 1e-5)).all()
    assert found.mean() > 1.1 * chance.mean()
    far = max(
        (a - b).abs().max() for one, two in zip(worst, batches, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert far > 0.1


def test_the_embedded_generator_has_far_worse_latents_than_random_ones():
    model, batches = sagan(), draw([Normal((64,))], 8, 8, 3)
    bitmap = {layer.name: "w4" for layer in mpsearch.find_layers(model, batches[0])}
    worst = mpsearch.worst_case(model, bitmap, batches, steps=8)
    assert gaps(model, bitmap, worst, None).mean() > 1.5 * gaps(model, bitmap, batches, None).mean()


def test_a_box_is_not_left(translator):
    batches = [(pictures(8, 4),)]
    for region in (Box(-1.0, 1.0), Box(-1.0, 1.0, 0.05)):
        ((x,),) = mpsearch.worst_case(translator, {"down.weight": "w3"}, batches, 6, regions=[region])
        assert -1 <= x.min() < x.max() <= 1
        assert (x - batches[0][0]).abs().max() <= region.reach + 1e-6
        assert (
            gaps(translator, {"down.weight": "w3"}, [(x,)], None).mean()
            > gaps(translator, {"down.weight": "w3"}, batches, None).mean()
        )


def test_one_step_on_the_shell_by_hand():
    x = torch.tensor([[3.0, 4.0]])
    radial = Shell().step(x, x, torch.tensor([[0.3, 0.4]]), 0.5)
    torch.testing.assert_close(radial, x)  # straight outwards: there is nothing to gain on the shell
    tangent = Shell().step(x, x, torch.tensor([[-4.0, 3.0]]) + x, 1.0)
    torch.testing.assert_close(tangent, torch.tensor([[-1.0, 7.0]]) * 5 / 50**0.5)


def test_nothing_moves_where_there_is_nothing_to_gain(translator):
    zeros = torch.zeros(2, 3)
    assert torch.equal(Shell().step(zeros, zeros, torch.zeros(2, 3), 0.5), zeros)
    assert Shell().step(zeros, zeros, torch.ones(2, 3), 0.5).abs().max() < 1e-15
    ((x,),) = mpsearch.worst_case(translator, {}, noise(4), 3)
    assert torch.equal(x, noise(4)[0][0]), "a map that changes nothing"


def test_where_an_argument_may_go_follows_from_its_source():
    sources = [Normal((3,)), Integers(4), Uniform((2,), -1.0, 2.0), Constant(1.0)]
    assert regions_of(sources) == [Shell(), None, Box(-1.0, 2.0), None]
    with pytest.raises(UsageError, match="nothing to move: it moves inputs of kind normal"):
        mpsearch.worst_case(nn.Linear(2, 2), {"weight": "w4"}, [(torch.ones(1, 2),)], regions=[None])
    with pytest.raises(ModelError, match="inputs have no gradient"):
        mpsearch.worst_case(Blind(), {"down.weight": "w3"}, noise(4))


SAMPLES = {"calibration": 20, "heldback": 12, "distances": 16, "batch": 4}


def test_the_sets_of_a_run_are_balanced_and_apart(tmp_path):
    config = load_config(
        inputs=({"kind": "normal", "shape": [64]}, {"kind": "integers", "classes": 3}), samples=SAMPLES
    )
    seen = []
    for name, refine in (("plain", None), ("clusters", {"name": "cluster", "options": {"pool": 3}})):
        run = Run(load_config(inputs=config.inputs, samples=SAMPLES, refine=refine), tmp_path / name)
        run.workload.__dict__["model"] = Latent()
        sets = [joined(run.inputs(count, at)) for count, at in ((20, 0), (12, HELDBACK), (16, DISTANCES))]
        assert [len(z) for z, _ in sets] == [20, 12, 16]
        for _, labels in sets:
            numbers = labels.bincount(minlength=3)
            assert numbers.max() - numbers.min() <= 1
        assert len({tuple(z.tolist()) for zs, _ in sets for z in zs}) == 48
        seen.append(sets)
    (plain, *rest), (chosen, *others) = seen
    assert not torch.equal(plain[0], chosen[0]), "calibration inputs are chosen"
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, others, strict=True)), "the others are not"


class Latent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, z, label):
        return self.linear(z).view(-1, 1, 8, 8)


def test_a_run_on_inputs_matched_to_statistics_reports_the_worst_of_them(tmp_path, translator, monkeypatch):
    asked = {
        "inputs": ({"kind": "uniform", "shape": [1, 16, 16], "low": -1.0},),
        "refine": {"name": "statistics", "options": {"steps": 30, "low": -1.0}},
        "samples": {**SAMPLES, "adversarial": 5},
        "quality": {"features": "pixels"},
        "effort": "fast",
    }
    monkeypatch.setattr("mpsearch.workload.load_generator", lambda *args: translator)
    run = Run(load_config(**asked), tmp_path)
    calibration, held = run.inputs(20, 0), run.inputs(12, HELDBACK)
    for batches in (calibration, held):
        assert distance(translator, batches) < distance(translator, noise()) / 5
    assert not {x.numpy().tobytes() for x in joined(calibration)[0]} & {x.numpy().tobytes() for x in joined(held)[0]}
    quality = run.quality
    assert quality.worst_mse.n == 5
    assert quality.worst_mse.value > quality.mse.value
    assert quality.worst_psnr_db.value < quality.psnr_db.value
    assert QualityReport.from_json(quality.to_json()) == quality
    assert "on the worst inputs\n\nPaired PSNR, dB: " in run.report().read_text()
    monkeypatch.setattr(Statistics, "_matched", lambda *args: pytest.fail("matched again"))
    again = Run(load_config(**asked), tmp_path)
    assert torch.equal(again.inputs(20, 0)[0][0], calibration[0][0]), "a killed run repeats nothing"
    assert again.quality == quality
    other = Run(load_config(**{**asked, "refine": None}), tmp_path)
    assert other.workload.identity != run.workload.identity


def test_more_worst_inputs_than_pairs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="samples: adversarial 13 start from the heldback 12: lower it"):
        load_config(samples={**SAMPLES, "adversarial": 13})
    with pytest.raises(UsageError, match="unknown refiner 'clusters'; the closest is 'cluster'"):
        _ = Run(load_config(refine={"name": "clusters"}), tmp_path).inputs(4, 0)
