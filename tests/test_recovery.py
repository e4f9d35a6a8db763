"""Recovery: the map stays, its weights learn to draw what the float generator draws."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import mpsearch
from mpsearch import ArtifactError, BitMap, CalibrationError, UsageError
from mpsearch.calibration import Calibration
from mpsearch.cli import app
from mpsearch.config import MethodConfig, RunConfig, load_config, options_of
from mpsearch.export import load_packed, payload_bytes
from mpsearch.quant import WeightBank, with_ranges
from mpsearch.recovery import RECOVERERS
from mpsearch.recovery.trial import Trial
from mpsearch.recovery_run import made, recover, resumed
from mpsearch.run import Run
from mpsearch.store import Snapshot


class Mixed(nn.Module):
    """A tied layer, a norm, a transposed convolution, an ordinary spectral norm, and a layer without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.up = nn.ConvTranspose2d(8, 6, 4)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, padding=1))
        self.last = nn.Conv2d(6, 3, 3, padding=1, bias=False)

    def forward(self, z):
        x = self.second(self.first(z).relu()).relu()
        x = self.norm(self.up(x[:, :, None, None])).relu()
        return self.last(self.hidden(x).relu()).tanh()


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    model = Mixed()
    z = [torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    for batch in z:
        model(batch)  # statistics of the norm
    return model.eval(), [(batch,) for batch in z]


MAP = {"first.weight": "w3a8", "up.weight": "w[2*3,4*3]", "hidden.weight": "w3", "last.weight": "w4a6"}


def error(model, bitmap, batches, bank=None):
    with torch.no_grad():
        images = [model(*batch) for batch in batches]
    with mpsearch.quantized(model, bitmap, batches, bank) as small, torch.no_grad():
        pairs = zip(batches, images, strict=True)
        return sum((small(*batch) - image).square().mean().item() for batch, image in pairs)


def test_distil_learns_what_unseen_inputs_show_and_leaves_the_model_alone(mixed, snapshot):
    model, batches = mixed
    unseen = [(torch.randn(64, 8, generator=torch.Generator().manual_seed(99)),)]
    shot = snapshot(model)
    state = torch.get_rng_state()
    bank = mpsearch.recover(model, MAP, batches, steps=150)
    shot.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert error(model, MAP, unseen, bank) < 0.5 * error(model, MAP, unseen)
    again = mpsearch.recover(model, MAP, batches, steps=150)
    assert error(model, MAP, unseen, again) == error(model, MAP, unseen, bank)
    for name, text in MAP.items():
        format = mpsearch.Format.parse(text)
        own = bank.quantized(name, format)
        low, high = own.limits
        assert (low.abs() <= high + 1).all()
        assert ((own.codes >= low) & (own.codes <= high)).all()
        assert (own.scale > 0).all()
    assert set(bank.tensors) == {f"{n}.bias" for n in ("first", "second", "up", "norm", "hidden")} | {"norm.weight"}


def test_adaround_takes_one_of_the_two_codes_around_every_weight(mixed, snapshot):
    model, batches = mixed
    shot = snapshot(model)
    bank = mpsearch.recover(model, MAP, batches, "adaround", steps=150)
    shot.check()
    unseen = [(torch.randn(64, 8, generator=torch.Generator().manual_seed(99)),)]
    assert error(model, MAP, unseen, bank) < 0.8 * error(model, MAP, unseen)
    nearest = WeightBank(model)
    moved = 0
    for name in MAP:
        format = mpsearch.Format.parse(MAP[name])
        own, other = bank.quantized(name, format), nearest.quantized(name, format)
        assert torch.equal(own.scale, other.scale)
        exact = (nearest.weight(name) / own.scale + own.offset).clamp(*other.limits)
        assert (own.codes - exact).abs().max() <= 1 + 1e-4
        moved += (own.codes != other.codes).sum().item()
    assert moved > 20


def test_a_layer_that_two_modules_share_is_rounded_for_both():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    model[2].weight = model[0].weight
    inputs = [torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(9)]
    *batches, unseen = [(batch,) for batch in inputs]
    bank = mpsearch.recover(model, {"0.weight": "w4"}, batches, "adaround")
    with mpsearch.quantized(model, {"0.weight": "w4"}, bank=bank) as small:
        assert torch.equal(small[0].weight, small[2].weight)
    assert error(model, {"0.weight": "w4"}, [unseen], bank) < 0.95 * error(model, {"0.weight": "w4"}, [unseen])


def test_bias_correction_brings_the_means_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [(torch.rand(64, 16, generator=torch.Generator().manual_seed(seed)),) for seed in range(8)]
    bitmap = {f"{layer}.weight": "w2" for layer in (0, 2, 4)}
    bank = mpsearch.recover(model, bitmap, batches, "bias")
    with torch.no_grad():
        float_mean = torch.cat([model(*batch) for batch in batches]).mean(0)

    def off(bank):
        with mpsearch.quantized(model, bitmap, bank=bank) as small, torch.no_grad():
            return (torch.cat([small(*batch) for batch in batches]).mean(0) - float_mean).abs().max().item()

    assert off(bank) < 0.1 * off(None)
    assert error(model, bitmap, batches, bank) < 0.7 * error(model, bitmap, batches)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z):
        return self.layer(self.layer(z).relu())


def test_a_layer_that_runs_twice_gets_one_bias_for_both():
    torch.manual_seed(0)
    model = Twice().eval()
    batches = [(torch.rand(32, 4),) for _ in range(4)]
    bank = mpsearch.recover(model, {"layer.weight": "w2"}, batches, "bias")
    assert error(model, {"layer.weight": "w2"}, batches, bank) <= error(model, {"layer.weight": "w2"}, batches)


@pytest.mark.parametrize("method", RECOVERERS)
def test_what_makes_it_worse_is_not_taken(mixed, method):
    model, batches = mixed
    options = {"bias": {}, "scales": {}, "batch_norm": {}, "equalise": {}}.get(method, {"rate": 50.0, "steps": 8})
    ranges = with_ranges(model, BitMap(MAP), batches, WeightBank(model))
    bank = mpsearch.recover(model, ranges, batches, method, **options)
    kept_back = batches[-2:]
    assert error(model, ranges, kept_back, bank) <= error(model, ranges, kept_back) * (1 + 1e-6)
    assert mpsearch.recover(model, dict.fromkeys(MAP, "float"), batches, method, **options).tensors.keys() <= {
        "first.bias"
    } | {f"{name}.bias" for name in ("up", "hidden")}


def test_the_recovered_generator_is_written_in_the_bytes_of_the_map(mixed, tmp_path):
    model, batches = mixed
    bank = mpsearch.recover(model, MAP, batches, steps=40)
    plain = mpsearch.export(model, MAP, tmp_path / "plain", batches)
    files = mpsearch.export(model, MAP, tmp_path / "recovered", batches, bank=bank)
    assert payload_bytes(files["packed"]) == payload_bytes(plain["packed"])
    loaded = load_packed(files["packed"], Mixed())
    bitmap = mpsearch.read_map(files["json"])
    with mpsearch.quantized(model, bitmap, bank=bank), torch.no_grad():
        expected = model(*batches[0])
    with torch.no_grad():
        torch.testing.assert_close(loaded(*batches[0]), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(load_packed(plain["packed"], Mixed())(*batches[0]), expected, atol=1e-3)
    after = mpsearch.validate(model, bitmap, batches, bank=bank)
    assert after.psnr_db.value > mpsearch.validate(model, bitmap, batches).psnr_db.value


def test_bad_input_is_one_line(mixed):
    model, batches = mixed
    with pytest.raises(CalibrationError, match="2 batches of inputs or more, to keep one back: got 1"):
        mpsearch.recover(model, MAP, batches[:1])
    with pytest.raises(UsageError, match="unknown recovery 'adaroundd'"):
        mpsearch.recover(model, MAP, batches, "adaroundd")
    with pytest.raises(
        UsageError, match="distil needs steps, checks and patience of 1 or more and a rate above 0, not 0, 8"
    ):
        mpsearch.recover(model, MAP, batches, steps=0)
    with pytest.raises(
        UsageError, match="adaround needs steps, probes and lessons of 1 or more, rate and strength above 0"
    ):
        mpsearch.recover(model, MAP, batches, "adaround", strength=0.0)
    with pytest.raises(UsageError, match=r"no layer 'frist\.weight'"):
        mpsearch.recover(model, {"frist.weight": "w4"}, batches)
    with pytest.raises(UsageError, match="'steps' is not of the form name=value"):
        options_of(["steps"])
    assert options_of(["steps=10", "rate=0.01"]) == {"steps": 10, "rate": 0.01}
    assert options_of(["rate=1e-3"]) == {"rate": 1e-3}


SMALL = {
    "samples": {"calibration": 16, "heldback": 8, "distances": 40, "recovery": 32, "batch": 8},
    "budgets": ("bits<=3",),
    "effort": "fast",
    "quality": {"features": "pixels"},
}


def test_a_run_folder_is_recovered_once(tmp_path, monkeypatch):
    run = Run(RunConfig(**SMALL), tmp_path / "run")
    before = run.quality
    out = CliRunner().invoke(app, ["recover", str(tmp_path / "run"), "--option", "steps=6", "--option", "checks=1"])
    assert out.exit_code == 0, out.output
    assert "recovered" in out.output
    found = json.loads((tmp_path / "run" / "recovery.json").read_text())
    assert found["before"]["psnr_db"] == before.psnr_db.value
    assert found["before"]["fd"] == before.figures["fd"].quantized.value
    assert found["after"]["psnr_db"] >= found["before"]["psnr_db"] - 0.5
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Pictures, recovered" in report
    assert "**distil**" in report
    packed = tmp_path / "run" / "recovered" / "generator.safetensors"
    assert payload_bytes(packed) == run.solution.costs["size"]
    monkeypatch.setattr("mpsearch.api.recover", None)  # nothing is trained again
    asked = MethodConfig(name="distil", options={"steps": 6, "checks": 1})
    again = recover(Run(resumed(tmp_path / "run"), tmp_path / "run"), [asked])
    assert json.loads(json.dumps(again.to_json())).items() <= found.items()
    assert made(Run(RunConfig(**SMALL), tmp_path / "run")) == (asked,), "mpsearch run reports it too"
    assert made(Run(RunConfig(**SMALL | {"budgets": ("bits<=4",)}), tmp_path / "run")) == (), "it has another map"


def test_a_run_in_a_recovered_folder_still_reports_the_recovery(tmp_path):
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    again = ["run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")]
    assert "nearest weights" not in CliRunner().invoke(app, again).output
    CliRunner().invoke(app, ["recover", str(tmp_path / "run"), "--method", "bias"])
    assert "nearest weights" in CliRunner().invoke(app, again).output
    assert "## Pictures, recovered" in (tmp_path / "run" / "report.md").read_text()
    assert "nearest weights" not in CliRunner().invoke(app, [*again, "--budget", "bits<=4"]).output
    assert "## Pictures, recovered" not in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("cost", "share", "asked"),
    [
        (
            "bops",
            0.12,
            MethodConfig(name="realloc", options={"steps": 10, "every": 2, "formats": ["w2", "w4"], "bops": False}),
        ),
        ("coded", 0.14, MethodConfig(name="adaround", options={"steps": 20})),
    ],
)
def test_a_recovery_over_the_budget_is_refused(tmp_path, cost, share, asked):
    wide = Run(RunConfig(**SMALL | {"budgets": (f"{cost}<={share:.0%}",)}), tmp_path / "run").solution
    budget = f"{cost}<={wide.costs[cost]:.0f}"  # none to spare
    run = Run(RunConfig(**SMALL | {"budgets": (budget,)}), tmp_path / "run")
    with pytest.raises(UsageError, match=rf"takes [\d,]+ of {cost}, [\d.]+% more than {cost}<=[\d.e+]+ allows; search"):
        recover(run, [asked])
    assert not (tmp_path / "run" / "recovered").exists()


def test_a_run_recovers_where_its_config_says_so(tmp_path):
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config | {"recover": {"name": "bias"}}))
    out = CliRunner().invoke(app, ["run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")])
    assert out.exit_code == 0, out.output
    assert "BiasCorrection" in json.loads((tmp_path / "run" / "recovery.json").read_text())["method"]
    again = CliRunner().invoke(app, ["recover", str(tmp_path / "run"), "--option", "seed=3"])
    assert "BiasCorrection" in again.output
    refused = CliRunner().invoke(app, ["recover", str(tmp_path / "run"), "--method", "biass"])
    assert "unknown recovery 'biass'" in str(refused.exception)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recover": {"name": "biass"}}, "unknown recovery 'biass'"),
        ({"recover": {"name": "distil", "options": {"steps": 0}}}, "steps"),
        ({"recover": {"name": "bias"}, "samples": SMALL["samples"] | {"recovery": 8}}, "recovery 8 are one batch of 8"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_the_search(tmp_path, given, message):
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config | given))
    out = CliRunner().invoke(app, ["run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")])
    assert message in str(out.exception)
    assert not (tmp_path / "run" / "bitmap.json").exists()


def test_what_a_recovery_warns_of_is_in_its_file_and_in_the_report(tmp_path):
    run = Run(RunConfig(**SMALL), tmp_path / "run")
    options = {"steps": 12, "rate": 1e30}
    with pytest.warns(UserWarning, match="diverged"):
        found = recover(run, [MethodConfig(name="distil", options=options)])
    (warning,) = [text for text in found.after.warnings if "diverged" in text]
    assert warning in (tmp_path / "run" / "recovery.json").read_text()
    assert warning in (tmp_path / "run" / "report.md").read_text()


def test_several_methods_work_one_after_the_other(mixed, tmp_path):
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    chain = [{"name": "adaround", "options": {"steps": 5}}, {"name": "distil", "options": {"steps": 5, "checks": 1}}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config | {"recover": chain}))
    found = recover(Run(load_config(tmp_path / "own.yaml"), tmp_path / "run"))
    assert found.method.startswith("AdaRound(")
    assert ", then Distil(" in found.method
    model, batches = mixed
    first = mpsearch.recover(model, MAP, batches, "adaround", steps=60)
    both = mpsearch.recover(model, MAP, batches, bank=first, steps=60)
    unseen = [(torch.randn(64, 8, generator=torch.Generator().manual_seed(99)),)]
    assert error(model, MAP, unseen, both) < error(model, MAP, unseen, first)


def never(*_):
    raise AssertionError("a method that was done is done again")


def test_a_chain_that_was_killed_keeps_what_the_first_method_made(tmp_path, monkeypatch):
    run = Run(RunConfig(**SMALL), tmp_path / "run")
    chain = [MethodConfig(name="adaround", options={"steps": 3}), MethodConfig(name="bias")]
    whole = recover(Run(RunConfig(**SMALL), tmp_path / "whole"), chain)

    def killed(self, trial):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RECOVERERS["bias"], "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            recover(run, chain)
    monkeypatch.setattr(RECOVERERS["adaround"], "__call__", never)
    assert recover(run, chain).after == whole.after
    packed = [(tmp_path / name / "recovered" / "generator.safetensors").read_bytes() for name in ("run", "whole")]
    assert packed[0] == packed[1]


KEPT = {**MAP, "hidden.weight": "ternary", "last.weight": "w4zg27a6"}


@pytest.mark.parametrize("bitmap", [MAP, KEPT], ids=["integers", "richer"])
@pytest.mark.parametrize("method", RECOVERERS)
def test_what_a_method_made_is_kept_whole(mixed, tmp_path, method, bitmap):
    model, batches = mixed
    options = {"steps": 4} if "steps" in RECOVERERS[method].__dataclass_fields__ else {}
    shot = Snapshot(tmp_path / "snapshot.safetensors", "one")
    bank = mpsearch.recover(model, bitmap, batches, method, snapshot=shot, **options)
    again = mpsearch.recover(model, bitmap, batches, method, snapshot=shot, progress=never, **options)
    images = []
    for own in (bank, again):
        with mpsearch.quantized(model, own.normalised(BitMap(bitmap)), batches, own) as small, torch.no_grad():
            images.append(small(*batches[0]))
    assert torch.equal(*images)
    assert again.formats == bank.formats
    assert again.ranges == bank.ranges


def test_weights_that_changed_since_the_map_was_made_are_refused(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Linear(64, 48), nn.Unflatten(1, (3, 4, 4))).eval()\n"
    )
    own = nn.Sequential(nn.Linear(64, 48))
    save_file(dict(own.state_dict()), tmp_path / "own.safetensors")
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    config["model"] = {"factory": "own.py:build", "weights": "own.safetensors"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    _ = Run(load_config(tmp_path / "own.yaml"), tmp_path / "run").quality
    save_file({key: value + 0.01 for key, value in own.state_dict().items()}, tmp_path / "own.safetensors")
    before = (tmp_path / "run" / "bitmap.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"weights, code or inputs of own.py:build have changed since the map in"):
        recover(Run(resumed(tmp_path / "run"), tmp_path / "run"))
    assert (tmp_path / "run" / "bitmap.json").read_bytes() == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"is no run folder: it has no run\.json"):
        resumed(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": "mpsearch-run/1", "config": {}}')
    with pytest.raises(ArtifactError, match="holds no config that can be read"):
        resumed(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": "mpsearch-run/1", "config": {"effort": "none"}, "base": "."}')
    with pytest.raises(ArtifactError, match="holds no config that can be read"):
        resumed(tmp_path)


def test_a_map_of_floats_has_nothing_to_learn(mixed):
    model, batches = mixed
    trial = Trial(model, BitMap({"last.weight": "fp16"}), WeightBank(model), Calibration.of(batches))
    RECOVERERS["distil"]()(trial)
    assert (trial.best.weights, trial.best.tensors) == ({}, {})
