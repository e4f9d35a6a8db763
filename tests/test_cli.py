"""The command line as a user meets it: whole processes, exit codes, one line on standard error."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mpsearch import __version__, cli, validation
from mpsearch.cli import app

SMALL = """
model: {factory: "net.py:build"}
inputs: [{kind: normal, shape: [6]}]
samples: {calibration: 8, heldback: 8, distances: 40, batch: 4}
formats: [w2, w4, w6]
"""
NET = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 768))
        return nn.Sequential(*body, nn.Tanh(), nn.Unflatten(1, (3, 16, 16)))
"""
ARTEFACTS = {"layers.json", "sensitivity.json", "bitmap.json", "quality.json", "samples.png", "report.md"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    """Exit code, standard output, standard error of ``mpsearch``, in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, cli.MpsearchError):
        return 2, result.output, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output, ""


def process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "mpsearch", *map(str, arguments)], capture_output=True, text=True, **options
    )


COMMANDS = ("layers", "sensitivity", "search", "validate", "compare", "pareto", "export", "run")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    code, output, _ = call(command, "--help")
    assert code == 0
    assert f"mpsearch {command}" in output
    assert "Example" in output


def test_run_writes_every_artefact_and_a_second_run_measures_nothing(project, monkeypatch):
    code, output, _ = call("run", "small.yaml", "--out", "out", "--budget", "bits<=3")
    assert code == 0
    out = project / "out"
    assert {p.name for p in out.iterdir()} >= ARTEFACTS
    assert {p.name for p in (out / "export").iterdir()} == {"generator.safetensors", "map.json", "map.yaml", "map.csv"}
    bitmap = json.loads((out / "bitmap.json").read_text())
    assert set(bitmap["layers"]) == {"0.weight", "2.weight"}
    for entry in bitmap["layers"].values():
        assert entry["weight_bits"] in (2, 4, 6)
        assert entry["act_bits"] is None
    assert bitmap["costs"]["bits"] <= 3
    report = (out / "report.md").read_text()
    for words in ("| `bits<=3` | 3 |", "uniform", "size-only", "paired PSNR", "Fréchet distance", "samples.png"):
        assert words in report
    assert "budget bits<=3" in output

    def fail(*args, **kwargs):
        raise AssertionError("measured twice")

    before = {p: p.read_bytes() for p in out.glob("*.json")}
    monkeypatch.setattr("mpsearch.subject.paired_errors", fail)
    monkeypatch.setattr("mpsearch.sensitivity.projection.pull_back", fail)
    monkeypatch.setattr("mpsearch.validation.featurise", fail)
    assert call("run", "small.yaml", "--out", "out", "--budget", "bits<=3")[0] == 0
    assert before == {p: p.read_bytes() for p in out.glob("*.json")}


def test_a_new_budget_reuses_the_sensitivity(project, monkeypatch):
    call("search", "small.yaml", "--out", "out", "--budget", "bits<=3")
    first = json.loads((project / "out/bitmap.json").read_text())

    def fail(*args, **kwargs):
        raise AssertionError("measured twice")

    monkeypatch.setattr("mpsearch.sensitivity.projection.pull_back", fail)
    assert call("search", "small.yaml", "--out", "out", "--budget", "bits<=5", "--effort", "fast")[0] == 0
    second = json.loads((project / "out/bitmap.json").read_text())
    assert second["costs"]["bits"] > first["costs"]["bits"]


def test_every_stage_alone(project):
    code, output, _ = call("layers", "small.yaml", "--out", "out")
    assert code == 0
    assert "2.weight" in output
    assert {p.name for p in (project / "out").iterdir()} == {"run.json", "layers.json"}
    assert call("sensitivity", "small.yaml", "--out", "out", "--estimator", "hessian")[0] == 0
    assert json.loads((project / "out/sensitivity.json").read_text())["source"].startswith("hessian")
    assert call("validate", "small.yaml", "--out", "out")[0] == 0
    code, output, _ = call("export", "small.yaml", "--out", "out")
    assert code == 0
    assert "packed" in output


def test_compare_prints_rank_correlations(project):
    code, output, _ = call("sensitivity", "small.yaml", "--out", "out", "--compare")
    assert code == 0
    for name in ("one-pass", "perturbation", "hessian", "fid-proxy"):
        assert name in output
    assert "1.0000" in output, "perturbation is the truth"
    assert "noise floor" in output


def test_a_map_written_by_hand_is_validated_and_exported(project):
    layers = {"0.weight": {"weight_bits": 2, "act_bits": 8}, "2.weight": {"weight_bits": None, "act_bits": None}}
    (project / "mine.json").write_text(json.dumps({"layers": layers}))
    code, output, _ = call("validate", "small.yaml", "--out", "out", "--bitmap", "mine.json")
    assert code == 0
    assert "psnr_db" in output
    assert (project / "out/quality-mine.json").exists()
    assert call("export", "small.yaml", "--out", "out", "--bitmap", "mine.json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "bits<=1"], "bits<=1 cannot be met: the smallest feasible value is bits<=2"),
        (["--budget", "bits<4"], "cannot read the budget 'bits<4'"),
        (["--budget", "weight<=4"], "unknown cost 'weight'"),
        (["--format", "w12"], "unknown format 'w12'"),
        (["--effort", "heroic"], "effort"),
    ],
)
def test_bad_arguments_exit_with_2_and_one_line(project, arguments, message):
    result = process("run", "small.yaml", "--out", "out", *arguments)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("mpsearch:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model: [1", "is not valid YAML"),
        ("- a\n- b", "holds a list, expected a mapping"),
        ("modle: {}", "modle: Extra inputs are not permitted; known entries: model, inputs"),
        ("samples: {foo: 3}", "samples.foo: Extra inputs are not permitted; known entries: calibration, heldback"),
        ("estimator: {nam: x, name: y}", "estimator.nam: Extra inputs are not permitted; known entries: name, options"),
        ("formats: [w4, w99]", "unknown format 'w99'"),
        ("budgets: ['bits=4']", "cannot read the budget"),
        ("samples: {calibration: 0}", "samples.calibration: Input should be greater than or equal to 2"),
        ("inputs: [{kind: normals}]", r"unknown kind of input 'normals'; the closest is 'normal'"),
        ("inputs: [{shape: [3]}]", "inputs.0 has no kind"),
        ("inputs: [{kind: normal, shap: [3]}]", "has no option 'shap'; it has shape, scale"),
        ("inputs: [{kind: normal, shape: [7]}]", r"fails on inputs of shape \(4, 7\)|fails on inputs of shape"),
        ("layers: {exclude: ['conv*']}", "the pattern 'conv*' matches no layer"),
        ("estimator: {name: magic}", "unknown estimator 'magic'"),
        ("estimator: {name: one-pass, options: {probes: 0}}", "at least 2 probes"),
        ("solver: {name: annealing}", "unknown solver 'annealing'"),
        ("quality: {features: 'net.py:nothing'}", "has no function 'nothing'"),
        ("device: abacus", "no device 'abacus' here"),
        ("model: {factory: 'net.py:build', weights: none.safetensors}", "do not exist"),
    ],
)
def test_bad_configs_are_one_line(project, config, message):
    base = {} if config.startswith(("model", "- ", "modle")) else {"model": 'model: {factory: "net.py:build"}\n'}
    inputs = "" if "inputs" in config else "inputs: [{kind: normal, shape: [6]}]\n"
    if config.startswith(("model: [", "- ")):
        inputs = ""
    samples = "" if "samples" in config else "samples: {calibration: 4, heldback: 4, distances: 8, batch: 4}\n"
    if config.startswith(("model: [", "- ")):
        samples = ""
    (project / "bad.yaml").write_text(base.get("model", "") + inputs + samples + config)
    code, _, error = call("run", "bad.yaml", "--out", "out")
    assert code == 2
    assert "\n" not in error
    assert any(part in error for part in message.split("|")) or "fails on inputs" in error


def test_a_missing_config(project):
    assert "cannot read the config nothing.yaml" in call("run", "nothing.yaml")[2]


@pytest.mark.parametrize(
    "name", ["layers.json", "sensitivity.json", "bitmap.json", "quality.json", "run.json", "measurements.jsonl"]
)
def test_a_corrupt_run_folder_is_refused_and_left_as_it_is(project, name):
    assert call("run", "small.yaml", "--out", "out", "--effort", "fast")[0] == 0
    path = project / "out" / name
    if name.endswith("jsonl"):
        damaged = path.read_bytes().replace(b'["error', b"error", 1)
    else:
        damaged = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(damaged)
    if name == "measurements.jsonl":
        (project / "out" / "bitmap.json").unlink()
    code, _, error = call("run", "small.yaml", "--out", "out", "--effort", "fast")
    assert code == 2
    assert name in error
    assert path.read_bytes() == damaged
    path.unlink()
    assert call("run", "small.yaml", "--out", "out", "--effort", "fast")[0] == 0, "deleting what is damaged is enough"


def test_quality_of_an_older_version_is_one_clear_line(project):
    assert call("run", "small.yaml", "--out", "out", "--effort", "fast")[0] == 0
    path = project / "out" / "quality.json"
    path.write_text(path.read_text().replace("mpsearch-quality/2", "mpsearch-quality/1"))
    code, _, error = call("run", "small.yaml", "--out", "out", "--effort", "fast")
    assert code == 2
    assert "quality.json has schema 'mpsearch-quality/1', expected 'mpsearch-quality/2'; delete it to" in error


def test_what_the_figures_are_against_is_said(project):
    code, output, _ = call("run", "small.yaml", "--out", "out", "--effort", "fast")
    assert code == 0
    quality = json.loads((project / "out/quality.json").read_text())
    assert quality["own"]
    assert "40 generated and 40 of the reference for 192 feature dimensions" in quality["warnings"][0]
    assert set(quality["gap"]) == {"error_db"}
    for figure in quality["figures"].values():
        assert all(figure[part]["low"] <= figure[part]["value"] <= figure[part]["high"] for part in figure)
    assert {"fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage"} == set(quality["figures"])
    report = (project / "out/report.md").read_text()
    for text in (
        "the reference is the float generator's own samples",
        "Generalisation gap",
        "noise floor",
        "Warning: few",
    ):
        assert text in report
    assert "warning: few samples" in output
    noise = torch.randn(300, 192, generator=torch.Generator().manual_seed(0))
    for name, halves in {"test": {}, "both": {"train": noise[:200] / 2}}.items():
        save_file({"features": noise / 3, **halves}, project / f"{name}.safetensors", {"name": "noise"})
        (project / "real.yaml").write_text(SMALL + f"quality: {{features: pixels, reference: {name}.safetensors}}")
        assert call("run", "real.yaml", "--out", name, "--effort", "fast")[0] == 0
        report = (project / name / "report.md").read_text()
        assert "No real images" not in report
        assert ("The reference has no training half" in report) == (name == "test")
        assert ("FD to test less FD to training images: float" in report) == (name == "both")
    before = (project / "both/quality.json").read_bytes()
    save_file({"features": noise / 3, "train": noise[:200]}, project / "both.safetensors", {"name": "noise"})
    assert call("run", "real.yaml", "--out", "both", "--effort", "fast")[0] == 0
    assert (project / "both/quality.json").read_bytes() != before, "another file of the same name is another reference"


def test_a_killed_run_continues_and_gives_the_same_answer(project):
    deep = "*[m for _ in range(3) for m in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 32)"
    net = NET.replace("nn.Linear(6, 32), nn.ReLU()", deep)
    assert net != NET
    (project / "net.py").write_text(net)
    assert process("run", "small.yaml", "--out", "whole").returncode == 0
    command = [sys.executable, "-m", "mpsearch", "run", "small.yaml", "--out", "cut"]
    journal = project / "cut" / "measurements.jsonl"
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while victim.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") > 12:
            os.kill(victim.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    victim.wait()
    kept = journal.read_bytes().splitlines()
    assert process("run", "small.yaml", "--out", "cut").returncode == 0
    names = [json.loads(line)[0] for line in journal.read_bytes().splitlines()]
    assert len(names) == len(set(names)), "something was measured twice"
    assert [line for line in kept if line.endswith(b"]")] == journal.read_bytes().splitlines()[: len(kept)]
    results = [json.loads((project / run / "bitmap.json").read_text()) for run in ("whole", "cut")]
    for result in results:
        result.pop("seconds")
    assert results[0] == results[1]


def test_quality_cut_off_half_way_keeps_its_finished_batches(project, monkeypatch):
    assert process("run", "small.yaml", "--out", "whole").returncode == 0
    made, draw = [], validation.output

    def output(model, inputs, index):
        made.append(index)
        if len(made) == 17:  # 10 batches of reference images, 2 of pairs, 10 of distances; float, then quantized
            raise KeyboardInterrupt
        return draw(model, inputs, index)

    monkeypatch.setattr(validation, "output", output)
    call("run", "small.yaml", "--out", "cut")
    assert len(made) == 17
    assert call("run", "small.yaml", "--out", "cut")[0] == 0
    assert len(made) - 1 == 10 + 2 * (2 + 10), "every batch was drawn once, but for the one that was cut off"
    assert (project / "cut/quality.json").read_bytes() == (project / "whole/quality.json").read_bytes()
    assert not (project / "cut/parts/quality").exists()


def test_a_damaged_part_is_named(project):
    assert call("run", "small.yaml", "--out", "out")[0] == 0
    (project / "out/quality.json").unlink()
    part = project / "out/parts/reference/reference-images-3.safetensors"
    part.write_bytes(part.read_bytes()[:40])
    code, _, error = call("run", "small.yaml", "--out", "out")
    assert code == 2
    assert "reference-images-3.safetensors is damaged" in error


def test_compare_reads_the_maps_of_other_tools(project):
    (project / "ours.json").write_text('{"layers": {"0.weight": {"weight_bits": 4, "act_bits": null}}}')
    (project / "plain.json").write_text('{"0": 4, "2.weight": "w2"}')
    (project / "rounded.yaml").write_text("layer_config: {'0': {bits: 6, act_bits: 16}, '2': {bits: 16}}")
    code, output, error = call(
        "compare", "ours.json", "plain.json", "rounded.yaml", "--config", "small.yaml", "--out", "o"
    )
    assert code == 0, error
    assert "PSNR" in output
    maps = json.loads((project / "o/comparison.json").read_text())["maps"]
    assert set(maps) == {"ours", "plain", "rounded"}
    assert maps["plain"]["costs"]["bits"] < maps["rounded"]["costs"]["bits"] < maps["ours"]["costs"]["bits"]
    assert maps["ours"]["quality"]["psnr_db"]["value"] > maps["plain"]["quality"]["psnr_db"]["value"]
    assert (project / "o/comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"first": 4}', "the generator has no layer 'first'; the closest is"),
        ('{"0": {"group_size": 3}}', "0 has none of weight_bits, bits"),
        ('{"0": 9}', "0 has the weight width 9: use one of 1, 2, 3"),
        ('{"0": "w[2,4]"}', "cannot take w3.00(2-4)"),
        ("[]", "is no bit map"),
    ],
)
def test_compare_refuses_what_is_no_map(project, text, message):
    (project / "m.json").write_text(text)
    code, _, error = call("compare", "m.json", "--config", "small.yaml", "--out", "o")
    assert code == 2
    assert message in error


def test_version_is_that_of_the_package():
    assert __version__.count(".") == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("estimator: {name: one-pass, options: {probes: x}}", "estimator 'one-pass': probes is 'x'"),
        ("solver: {name: bayes, options: {evaluations: 0}}", "bayes needs at least 1 evaluation, not 0"),
        ("solver: {name: ilp, options: {gap: -1.0}}", "ilp needs gap >= 0"),
        ("seed: -3", "seed: Input should be greater than or equal to 0"),
        ("{1: 2}", "the entry 1 is no name"),
        ("device: meta", "no device 'meta' here"),
        ("quality: {reference: flat.safetensors}", "expected 2 or more finite rows"),
        ("inputs: [{kind: 3}]", "unknown kind of input 3"),
        ("inputs: [{kind: normal, shape: 8}]", "kind of input 'normal': shape is 8"),
        ("inputs: [{kind: normal, shape: [-8]}]", "must hold sizes of 1 or more"),
        ("inputs: [{kind: integers}]", "kind of input 'integers' needs the option 'classes'"),
        ("inputs: [{kind: images, folder: x, crop: -2}]", "images needs crop and shrink of 1 or more"),
        ("model: {factory: 'raises.py:build'}", "fails with the options {}: KeyError: 'boom'"),
        ("model: {factory: 'broken.py:build'}", "cannot import 'broken.py': SyntaxError"),
        ("model: {factory: 'raises.py:Dies'}", "the generator fails on inputs of shape (4, 6): KeyError: 'missing'"),
    ],
)
def test_user_code_and_options_of_the_wrong_kind_are_one_line(project, config, message):
    import torch
    from safetensors.torch import save_file

    save_file({"features": torch.zeros(5)}, project / "flat.safetensors")
    (project / "broken.py").write_text("def build(:\n")
    (project / "raises.py").write_text(
        "from torch import nn\n"
        "def build():\n    raise KeyError('boom')\n"
        "class Dies(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(6, 2)\n"
        "    def forward(self, x):\n        return {}['missing']\n"
    )
    parts = {"model": 'model: {factory: "net.py:build"}', "inputs": "inputs: [{kind: normal, shape: [6]}]"}
    parts["samples"] = "samples: {calibration: 4, heldback: 4, distances: 8, batch: 4}"
    lines = [line for key, line in parts.items() if not config.startswith(key)]
    text = config if config.startswith("{") else "\n".join([*lines, config])
    (project / "bad.yaml").write_text(text)
    code, _, error = call("run", "bad.yaml", "--out", "out")
    assert code == 2
    assert message in error
    assert "\n" not in error


def test_the_same_folder_with_other_layers_measures_those(project):
    text = SMALL + "layers: {include: ['%s']}\n"
    tables = {}
    for out, names in (("shared", ["0.weight", "2.weight"]), ("fresh", ["2.weight"])):
        for name in names:
            (project / "one.yaml").write_text(text % name)
            assert call("sensitivity", "one.yaml", "--out", out)[0] == 0
        tables[out] = json.loads((project / out / "sensitivity.json").read_text())["values"]
    assert tables["shared"] == tables["fresh"]


def test_the_same_folder_with_another_seed_estimator_option_or_code(project):
    (project / "seeded.yaml").write_text(SMALL + "seed: 5\nestimator: {name: one-pass, options: {probes: 64}}\n")
    assert call("sensitivity", "seeded.yaml", "--out", "out", "--seed", "0")[0] == 0
    assert json.loads((project / "out/run.json").read_text())["config"]["seed"] == 0
    first = (project / "out/sensitivity.json").read_text()
    assert "probes=64" in first
    assert call("sensitivity", "seeded.yaml", "--out", "out", "--seed", "0", "--compare")[0] == 0
    assert (project / "out/sensitivity.json").read_text() == first
    (project / "net.py").write_text(NET.replace("nn.Tanh()", "nn.Sigmoid()"))
    assert call("sensitivity", "seeded.yaml", "--out", "out", "--seed", "0")[0] == 0
    assert (project / "out/sensitivity.json").read_text() != first


def test_other_features_give_another_fid_proxy(project):
    (project / "features.py").write_text("def mean(images):\n    return images.mean((2, 3))\n")
    tables = []
    other = "quality: {features: 'features.py:mean'}\n"
    for extra, out in (("", "a"), (other, "a"), (other, "b")):
        (project / "fid.yaml").write_text(SMALL + extra)
        assert call("sensitivity", "fid.yaml", "--out", out, "--estimator", "fid-proxy")[0] == 0
        tables.append(json.loads((project / out / "sensitivity.json").read_text())["values"])
    assert tables[0] != tables[1] == tables[2]


def test_an_output_folder_that_cannot_be(project):
    (project / "afile").write_text("x")
    assert "cannot write" in call("layers", "small.yaml", "--out", "afile/x")[2]
    assert "is a file, not a run folder" in call("layers", "small.yaml", "--out", "afile")[2]


def test_usage_errors_are_one_line(project):
    result = process("run", "small.yaml", "--effrot", "fast")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("mpsearch: No such option: --effrot")
