"""Recoveries by training: what each of them learns, and that a training which was killed goes on."""

import itertools

import numpy as np
import pytest
import torch
from conftest import error
from torch import nn

import mpsearch
from mpsearch import BitMap, Format, UsageError
from mpsearch.api import make_subject
from mpsearch.budgets import cost_of
from mpsearch.calibration import Calibration
from mpsearch.export import load_packed, payload_bytes
from mpsearch.quant import Closeness, Recovered, Student, WeightBank, applied
from mpsearch.quant.context import with_ranges
from mpsearch.recovery import BlockReplace, Distil, Incremental, PrimalDual, realloc
from mpsearch.recovery.training import paired
from mpsearch.recovery.trial import Trial
from mpsearch.sensitivity import ESTIMATORS
from mpsearch.store import Snapshot

MAP = {"0.weight": "w3a8", "3.weight": "w2a8", "6.weight": "w3a8"}
OPTIONS = {"realloc": {"formats": ["w2", "w3", "w4"], "every": 4}}
TRAINED = ("distil", "range_tune", "block_replace", "incremental", "primal_dual", "realloc")


def draw(seed, samples=16):
    return torch.randn(samples, 8, 1, 1, generator=torch.Generator().manual_seed(seed))


UNSEEN = [(draw(99, 64),)]


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(8, 12, 4), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.Conv2d(8, 3, 3, padding=1, bias=False), nn.Tanh(),
    )  # fmt: skip


@pytest.fixture
def small():
    torch.manual_seed(0)
    model, batches = generator(), [(draw(seed),) for seed in range(8)]
    for batch in batches:
        model(*batch)  # statistics of the norms
    return model.eval(), batches


def trial_of(model, batches, bitmap=MAP, progress=lambda *_: None, snapshot=None):
    bank, inputs = WeightBank(model), Calibration.of(batches)
    return Trial(model, with_ranges(model, BitMap(bitmap), inputs, bank), bank, inputs, progress, snapshot)


def contents(bank, bitmap=MAP):
    """Everything that a recovery makes, by name."""
    found = dict(bank.tensors)
    for name, format in bank.normalised(BitMap(bitmap)).items():
        stored = bank.quantized(name, format)
        found |= {
            f"{name} bits": torch.tensor(format.bits),
            f"{name} codes": stored.codes,
            f"{name} scale": stored.scale,
        }
    ends = {f"{name} range": torch.tensor(ranges) for name, ranges in bank.ranges.items()}
    return found | ends


def same(one, other):
    one, other = contents(one), contents(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# What all have in common


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_beats_its_start_on_unseen_inputs_and_leaves_the_model_alone(small, method, snapshot):
    model, batches = small
    bitmap = trial_of(model, batches).bitmap
    options = {"steps": 60, "rate": 0.01, **OPTIONS.get(method, {})}
    shot = snapshot(model)
    bank = mpsearch.recover(model, bitmap, batches, method, **options)
    shot.check()
    assert error(model, bitmap, UNSEEN, bank) < {"range_tune": 0.9, "incremental": 0.8}.get(method, 0.7) * error(
        model, bitmap, UNSEEN
    )
    with torch.inference_mode():  # whatever the caller is in
        assert same(mpsearch.recover(model, bitmap, batches, method, **options), bank)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("last", [5, 19])
def test_a_training_that_was_killed_ends_as_one_in_a_single_go(small, method, last, tmp_path):
    model, batches = small
    options = {"steps": 24, "checks": 6, "rate": 0.01, **OPTIONS.get(method, {})}
    whole = mpsearch.recover(model, MAP, batches, method, **options)

    def kill(what, done, total):
        assert (what, total) == (method, 24)
        if done == last:
            raise Killed

    shot = Snapshot(tmp_path / "snapshot.safetensors", "this map")
    with pytest.raises(Killed):
        mpsearch.recover(model, MAP, batches, method, progress=kill, snapshot=shot, **options)
    steps = []
    resumed = mpsearch.recover(
        model, MAP, batches, method, progress=lambda what, done, total: steps.append(done), snapshot=shot, **options
    )
    assert steps == list(range(last // 4 * 4 + 1, 25)), "on from the last check"
    assert same(resumed, whole)
    assert not same(whole, WeightBank(model))
    steps.clear()
    done = mpsearch.recover(model, MAP, batches, method, progress=lambda *_: steps.append(_), snapshot=shot, **options)
    assert steps == []
    assert same(done, whole)


def test_a_snapshot_of_another_map_is_not_used(small, tmp_path):
    model, batches = small
    path = tmp_path / "snapshot.safetensors"
    options = {"steps": 8, "checks": 4, "rate": 0.01}
    mpsearch.recover(model, MAP, batches, snapshot=Snapshot(path, "one map"), **options)
    other, steps = dict.fromkeys(MAP, "w4"), []
    bank = mpsearch.recover(
        model,
        other,
        batches,
        progress=lambda what, done, total: steps.append(done),
        snapshot=Snapshot(path, "another"),
        **options,
    )
    assert steps == list(range(1, 9))
    assert same(bank, mpsearch.recover(model, other, batches, **options))
    assert Snapshot(path, "one map").read() == {}


class Breaks(Distil):
    """The loss is no number in step 10."""

    def __call__(self, trial):
        student = Student(trial.model, trial.bitmap, trial.bank)
        self.train(
            trial, student, lambda step, batch: paired(trial, student, batch) * (float("nan") if step == 10 else 1)
        )


def test_divergence_warns_once_and_keeps_the_best(small, monkeypatch):
    model, batches = small
    shown = []
    show = Trial.show
    monkeypatch.setattr(Trial, "show", lambda self, found: shown.append((show(self, found), found)) or shown[-1][0])
    trial = trial_of(model, batches)
    with pytest.warns(UserWarning, match="breaks diverged in step 10 of 40; the best before it is kept") as warned:
        Breaks(steps=40, checks=20, rate=0.01)(trial)
    assert len(warned) == 1
    assert len(shown) == 4, "a check every other step"
    assert (trial.error, trial.best) == min(shown, key=lambda entry: entry[0])
    assert trial.error < trial.start


def test_images_that_are_not_finite_are_divergence_too(small):
    model, batches = small
    trial = trial_of(model, batches, dict.fromkeys(MAP, "w3"))  # nothing clips the activations
    with pytest.warns(UserWarning, match="distil diverged in step 2 of 8") as warned:
        Distil(steps=8, checks=8, rate=1e30)(trial)
    assert len(warned) == 1
    assert trial.error <= trial.start


def test_training_stops_when_it_has_long_found_nothing_better(small):
    model, batches = small
    for method, last in ((Distil(16, 1e-12, 8, 2), 4), (BlockReplace(16, 1e-12, 8, 2), 12)):
        steps = []
        method(trial_of(model, batches, progress=lambda what, done, total, steps=steps: steps.append(done)))
        assert max(steps) == last, "two checks, a check every other step, after all is quantized"


def test_buffers_of_a_bank_are_put_in_place_and_not_trained(small):
    model, batches = small
    trial = trial_of(model, batches)
    bias = torch.ones(12)
    trial.bank.tensors = {"0.bias": bias, "1.running_mean": torch.zeros(12)}
    student = Student(model, trial.bitmap, trial.bank)
    assert set(student.plain) == {"0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"}
    assert torch.equal(student.plain["0.bias"], bias)


# range_tune


def test_the_gradient_of_a_scale_is_that_of_lsq(small):
    model, batches = small
    trial = trial_of(model, batches)
    student = Student(model, trial.bitmap, trial.bank, weights=False, scales=True)
    assert not student.codes
    assert not student.plain
    assert not student.ends
    name = "6.weight"
    scale = student.numbers[name]["scale"]
    with torch.no_grad():
        scale.mul_(0.8)  # so that something is clipped
    signs = torch.randn(3, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((student.weight(name) * signs).sum(), [scale])
    stored = trial.bank.quantized(name, trial.bitmap[name])
    low, high = stored.limits
    steps = (model[6].weight / scale).detach() + stored.offset
    inside = (steps >= low) & (steps <= high)
    slopes = torch.where(inside, steps.round() - steps, steps.clamp(low, high) - stored.offset)
    assert not inside.all()
    torch.testing.assert_close(found, (slopes * signs).sum((1, 2, 3), keepdim=True))


def test_range_tune_learns_thresholds_and_nothing_else(small):
    model, batches = small
    bitmap = trial_of(model, batches).bitmap
    bank = mpsearch.recover(model, bitmap, batches, "range_tune", steps=40, rate=0.01)
    assert not bank.tensors
    for name, format in bitmap.items():
        stored = bank.quantized(name, format)
        steps = bank.weight(name) / stored.scale + stored.offset
        assert torch.equal(stored.codes, steps.round().clamp(*stored.limits))
        assert not torch.equal(stored.scale, WeightBank(model).quantized(name, format).scale)
        assert bank.ranges[name] != bitmap.ranges[name]
    activations = mpsearch.recover(model, {"0.weight": "a8", "6.weight": "a4"}, batches, "range_tune", steps=20)
    assert set(activations.ranges) == {"0.weight", "6.weight"}


# block_replace


def test_the_quantized_part_rises_to_all_layers():
    layers, method = list("abcdefgh"), BlockReplace(steps=100, ramp=0.4)
    counts = [len(method.quantized(step, layers)) for step in range(1, 101)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert [counts.index(8), counts[19]] == [35, 4], "half of the ramp, half of the layers"
    drawn = [method.quantized(step, layers) for step in range(16, 21)]
    assert drawn == [method.quantized(step, layers) for step in range(16, 21)]
    assert len(set(map(frozenset, drawn))) > 1
    assert all(len(BlockReplace(ramp=0.0).quantized(step, layers)) == 8 for step in (1, 2))


def test_layers_that_are_not_replaced_are_those_of_the_float_generator(small):
    model, batches = small
    trial = trial_of(model, batches)
    student = Student(model, trial.bitmap, trial.bank)
    with torch.no_grad():
        assert paired(trial, student, 0, lambda layer: False) == 0
        for name, value in student.codes.items():
            value.zero_()  # a layer that is quantized is seen to be
            assert paired(trial, student, 0, name.__eq__) > 0


def scaled(model, bitmap):
    """Channels of a layer scaled, and what reads them scaled back: the same generator from other float weights."""
    gains = torch.linspace(0.25, 4, 8)
    first, last = model[0], model[2]
    bias = {"0.bias": (first.bias * gains).detach()}
    floats = {"0.weight": (first.weight * gains[:, None]).detach(), "2.weight": (last.weight / gains).detach()}
    return WeightBank(model).recovered(bitmap, Recovered(tensors=bias, floats=floats | bias))


def test_float_layers_are_those_of_the_bank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [(torch.randn(16, 8),) for _ in range(4)]
    bitmap = BitMap({"0.weight": "w3", "2.weight": "w3"})
    bank = scaled(model, bitmap)
    trial = Trial(model, bitmap, bank, Calibration.of(batches))
    student = Student(model, bitmap, bank)
    with torch.no_grad(), Closeness(model, bank, bitmap, trial.learning).measured(0) as found:
        assert paired(trial, student, 0, lambda layer: False) < 1e-12
    assert max(distance.max() for distance in found.values()) < 1e-10
    with torch.no_grad(), Closeness(model, WeightBank(model), bitmap, trial.learning).measured(0) as found:
        paired(trial, student, 0, lambda layer: False)
    assert found["0.weight"].mean() > 0.1, "the outputs of the model itself are others"


# incremental


def test_what_is_frozen_is_the_largest_and_stays(small):
    model, batches = small
    trial = trial_of(model, batches)
    method = Incremental(stages=3)
    student = Student(model, trial.bitmap, trial.bank)
    student.held = {layer: torch.full_like(codes, torch.nan) for layer, codes in student.codes.items()}
    sizes = {name: trial.bank.weight(name).abs() for name in MAP}
    before = {}
    for stage, share in ((1, 0.5), (2, 0.75), (3, 1.0)):
        method.freeze(student, stage)
        for name, held in student.held.items():
            frozen = ~held.isnan()
            assert frozen.float().mean() == pytest.approx(share, abs=0.01)
            if stage == 1:
                assert sizes[name][frozen].min() >= sizes[name][~frozen].max()
            else:
                assert torch.equal(held[~before[name].isnan()], before[name][~before[name].isnan()])
            with torch.no_grad():
                student.codes[name].add_(0.6)  # what training does
        before = dict(student.held)
    for name, stored in student.recovered().weights.items():
        assert torch.equal(stored.codes, before[name])


def test_whole_layers_are_frozen_in_their_order(small):
    model, batches = small
    trial = trial_of(model, batches)
    student = Student(model, trial.bitmap, trial.bank)
    student.held = {layer: torch.full_like(codes, torch.nan) for layer, codes in student.codes.items()}
    Incremental(by="layers", stages=2).freeze(student, 1)
    assert [bool(held.isnan().any()) for held in student.held.values()] == [False, False, True]
    bitmap = trial.bitmap
    bank = mpsearch.recover(model, bitmap, batches, "incremental", by="layers", steps=60, rate=0.01)
    assert error(model, bitmap, UNSEEN, bank) < 0.9 * error(model, bitmap, UNSEEN)


# primal_dual


def distances(model, bitmap, bank, batch):
    """Relative squared distance of the output of every layer of a sequence, ``(layers, samples)``."""

    def outputs():
        found = []
        hooks = [model[at].register_forward_hook(lambda m, a, out: found.append(out.clone())) for at in (0, 3, 6)]
        with torch.no_grad():
            model(batch)
        for hook in hooks:
            hook.remove()
        return found

    expected = outputs()
    with applied(model, bitmap, bank):
        found = outputs()
    pairs = zip(found, expected, strict=True)
    return torch.stack([(a - b).square().mean((1, 2, 3)) / b.square().mean() for a, b in pairs]).double()


def test_multipliers_add_up_what_the_layers_exceed_the_tolerance_by(small):
    model, batches = small
    trial = trial_of(model, batches)
    found = PrimalDual(steps=6, patience=6, rate=1e-12, tolerance=0.01, ascent=0.5).multipliers(trial)
    each = [distances(model, trial.bitmap, trial.bank, *batch).mean(1) for batch in batches[:6]]
    assert len(trial.learning) == 6, "every batch once"
    expected = sum(0.5 * (one - 0.01) for one in each)
    assert (expected > 0).all()
    torch.testing.assert_close(torch.tensor(list(found.values())).double(), expected, rtol=1e-4, atol=0)
    assert list(found) == list(MAP)


def test_a_tolerance_that_all_layers_meet_changes_nothing(small):
    model, batches = small
    trial = trial_of(model, batches)
    assert set(PrimalDual(steps=8, tolerance=100.0).multipliers(trial).values()) == {0.0}
    free = mpsearch.recover(model, MAP, batches, "primal_dual", steps=8, tolerance=100.0)
    assert same(free, mpsearch.recover(model, MAP, batches, "distil", steps=8))


def test_multipliers_are_large_where_closeness_is_hard(small):
    model, batches = small
    for hard in MAP:
        bitmap = {name: "w2" if name == hard else "w8" for name in MAP}
        found = PrimalDual(steps=12, tolerance=0.02).multipliers(trial_of(model, batches, bitmap))
        assert found[hard] > 0
        upstream = [name for name in MAP if name < hard]
        assert all(found[name] == 0 for name in upstream)


def test_the_estimator_is_the_mean_distance_where_nothing_is_trained(small):
    model, batches = small
    subject = make_subject(model, batches)
    (format,) = formats = mpsearch.types.parse_formats(["w3a8"])
    method = ESTIMATORS["primal-dual"](steps=16, rate=1e-12, ascent=0.25)
    table = method(subject, formats)
    bitmap = subject.with_ranges(BitMap(dict.fromkeys(MAP, format)))
    each = 16 * 0.25 * torch.cat([distances(model, bitmap, subject.bank, *batch) for batch in batches], 1)
    np.testing.assert_allclose(table.values[:, 0], each.mean(1), rtol=1e-4)
    np.testing.assert_allclose(table.stderr[:, 0], each.std(1) / each.shape[1] ** 0.5, rtol=1e-3)
    assert table.measure == "multiplier"
    with pytest.raises(UsageError, match="primal-dual needs steps of 1 or more"):
        ESTIMATORS["primal-dual"](steps=0)


# realloc


def test_the_assignment_is_the_best_there_is():
    draws = np.random.default_rng(0)
    for _ in range(20):
        sizes = draws.integers(50, 5000, 5)
        widths = np.array([2, 3, 4, 8])
        spent = np.stack([-(-sizes[:, None] * widths // 8) + 40, sizes[:, None] * widths], axis=2)
        limits = spent[:, 1].sum(0) + draws.integers(0, 500, 2)
        damage = 10.0 ** draws.uniform(-6, 0, (5, 1)) * 4.0**-widths * draws.uniform(0.8, 1.2, (5, 4))
        allowed = draws.random((5, 4)) < 0.8
        allowed[:, 1] = True
        choices = [
            choice
            for choice in itertools.product(range(4), repeat=5)
            if (spent[np.arange(5), choice].sum(0) <= limits).all() and allowed[np.arange(5), choice].all()
        ]
        least = min(damage[np.arange(5), choice].sum() for choice in choices)
        found = realloc.assigned(damage, spent, limits, allowed)
        assert tuple(found) in choices
        assert damage[np.arange(5), found].sum() == pytest.approx(least, rel=1e-6)


class Uneven(nn.Module):
    """Next to nothing of what the larger layer gives reaches the images."""

    def __init__(self):
        super().__init__()
        self.loud, self.quiet = nn.Linear(8, 16), nn.Linear(8, 16)
        self.last = nn.Linear(16, 16)

    def forward(self, z):
        return self.last((self.loud(z) + 0.01 * self.quiet(z)).tanh())


def test_bits_go_where_they_are_needed_and_no_map_costs_more(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = Uneven().eval()
    batches = [(torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(8)]
    layers = mpsearch.find_layers(model, batches[0])
    start = BitMap(dict.fromkeys(("loud.weight", "quiet.weight", "last.weight"), "w3a8"))
    maps = []

    def reassigned(self):
        changed = assign(self)
        maps.append(BitMap({**start, **self._student.formats}))
        return changed

    assign = realloc.Widths.assign
    monkeypatch.setattr(realloc.Widths, "assign", reassigned)
    options = {"formats": ["w2", "w3", "w4", "w5", "w6"], "every": 10, "steps": 80, "rate": 0.01}
    bank = mpsearch.recover(model, start, batches, "realloc", **options)
    assert len(maps) == 4, "in the first half of the steps"
    found = bank.normalised(start)
    assert found["quiet.weight"].bits == 2 < found["loud.weight"].bits
    assert {format.act_bits for format in found.values()} == {8}
    for bitmap in (*maps, found):
        for cost in ("size", "bits"):
            assert cost_of(cost, bitmap, layers) <= cost_of(cost, start, layers)
    _the_bank_brings_its_map(model, start, found, bank, batches, tmp_path)


def _the_bank_brings_its_map(model, start, found, bank, batches, tmp_path):
    report = mpsearch.validate(model, start, batches, bank=bank)
    assert report.mse.value == mpsearch.validate(model, found, batches, bank=bank).mse.value
    plain = mpsearch.recover(model, start, batches, "distil", steps=80, rate=0.01)
    assert report.mse.value < 0.75 * mpsearch.validate(model, start, batches, bank=plain).mse.value
    files = mpsearch.export(model, start, tmp_path, batches, bank=bank)
    assert dict(mpsearch.read_map(files["json"])) == dict(found)
    layers = mpsearch.find_layers(model, batches[0])
    assert payload_bytes(files["packed"]) == cost_of("size", found, layers) <= cost_of("size", start, layers)
    with mpsearch.quantized(model, mpsearch.read_map(files["json"]), bank=bank), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        torch.testing.assert_close(load_packed(files["packed"], Uneven())(*batches[0]), expected, rtol=1e-4, atol=1e-5)
    more = mpsearch.recover(model, start, batches, "distil", bank=bank, steps=20, rate=0.001)
    assert more.formats == bank.formats, "another recovery goes on from there"
    assert mpsearch.validate(model, start, batches, bank=more).mse.value <= report.mse.value


@pytest.mark.parametrize(
    ("rules", "obeyed"),
    [
        ({"pin": {"quiet.weight": "w3a8"}}, lambda bits: bits["quiet.weight"] == 3),
        ({"floor": {"quiet.weight": 3}}, lambda bits: bits["quiet.weight"] >= 3),
        ({"together": [["loud.*", "quiet.*"]]}, lambda bits: bits["quiet.weight"] == bits["loud.weight"]),
    ],
)
def test_what_was_asked_of_single_layers_holds(rules, obeyed):
    torch.manual_seed(0)
    model = Uneven().eval()
    batches = [(torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(8)]
    start = BitMap(dict.fromkeys(("loud.weight", "quiet.weight", "last.weight"), "w3a8"))
    options = {"formats": ["w2", "w3", "w4", "w5"], "every": 5, "steps": 20, "rate": 0.01}
    for layers, held in ((None, False), (mpsearch.find_layers(model, batches[0], **rules), True)):
        bank = mpsearch.recover(model, start, batches, "realloc", layers=layers, **options)
        assert obeyed({name: f.bits for name, f in bank.normalised(start).items()}) == held


class Shrinking(nn.Module):
    """The layer that matters is called on many positions, the other on one."""

    def __init__(self):
        super().__init__()
        self.many, self.once = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(12, 12, bias=False)

    def forward(self, x):
        return self.many(x).mean((2, 3)) + 0.01 * self.once(x[:, :3, 0, :4].flatten(1))[:, :4]


def test_bops_are_kept_where_that_is_asked():
    torch.manual_seed(0)
    model = Shrinking().eval()
    batches = [(torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(8)]
    layers, start = mpsearch.find_layers(model, batches[0]), BitMap({"many.weight": "w3a8", "once.weight": "w3a8"})
    options = {"formats": ["w2", "w3", "w4"], "every": 5, "steps": 20, "rate": 0.01}
    spent = [
        cost_of(
            "bops", mpsearch.recover(model, start, batches, "realloc", bops=bops, **options).normalised(start), layers
        )
        for bops in (False, True)
    ]
    assert spent[1] <= cost_of("bops", start, layers) < spent[0]


def test_by_default_widths_are_exchanged_among_those_of_the_map(small):
    model, batches = small
    bank = mpsearch.recover(model, MAP, batches, "realloc", steps=40, every=5, rate=0.01)
    assert {format.bits for format in bank.normalised(BitMap(MAP)).values()} <= {2, 3}
    same_widths = mpsearch.recover(model, dict.fromkeys(MAP, "w3"), batches, "realloc", steps=16, every=2)
    assert same(same_widths, mpsearch.recover(model, dict.fromkeys(MAP, "w3"), batches, steps=16))
    channels = {"0.weight": "w[2*6,4*6]", "6.weight": "fp16"}
    assert not mpsearch.recover(model, channels, batches, "realloc", steps=4, every=2).formats


def test_a_layer_that_is_given_another_width_keeps_its_float_weight(small):
    model, batches = small
    trial = trial_of(model, batches)
    student = Student(model, trial.bitmap, trial.bank)
    before = student.unrounded("3.weight")
    first = student.state()
    changed = student.reformat("3.weight", Format.parse("w6a8"))
    assert [id(tensor) for tensor in changed] == [
        id(student.codes["3.weight"]),
        id(student.numbers["3.weight"]["scale"]),
    ]
    torch.testing.assert_close(student.unrounded("3.weight"), before)
    assert (student.weight("3.weight") - before).abs().max() < 0.05 * before.abs().max()
    rates = {id(group["params"][0]): group["lr"] for group in student.groups(1.0)}
    own = Student(model, BitMap({**trial.bitmap, "3.weight": "w6a8"}, trial.bitmap.ranges), trial.bank)
    fresh = {id(group["params"][0]): group["lr"] for group in own.groups(1.0)}
    ratio = rates[id(changed[1])] / fresh[id(own.numbers["3.weight"]["scale"])]
    assert 0.3 < ratio < 3, "the rate of a scale follows its size"
    state = student.state()
    student.load(first)
    assert torch.equal(student.state()["bits 3.weight"], torch.tensor(2))
    student.load(state)
    assert all(torch.equal(value, state[name]) for name, value in student.state().items())


def test_bad_options_are_one_line(small):
    model, batches = small
    for method, options, text in (
        ("block_replace", {"ramp": 1.5}, "block_replace needs a ramp from 0 to 1, not 1.5"),
        ("block_replace", {"steps": 0}, "block_replace needs steps, checks and patience of 1 or more"),
        ("incremental", {"stages": 9, "steps": 8}, "incremental needs from 1 stage to one a step, not 9 in 8 steps"),
        ("incremental", {"by": "channels"}, "by is 'channels'"),
        ("primal_dual", {"ascent": 0.0}, "primal_dual needs a tolerance of 0 or more and an ascent above 0, not"),
        ("realloc", {"every": 0}, "realloc needs every of 1 or more and until from 0 to 1, not 0 and 0.5"),
        ("realloc", {"formats": ["w4a8"]}, "realloc chooses among w2 … w8, not w4a8"),
        ("realloc", {"formats": ["w4", "w8"]}, "realloc cannot keep to the bytes of the map with w4 or more"),
    ):
        with pytest.raises(UsageError, match=text):
            mpsearch.recover(model, MAP, batches, method, **options)
