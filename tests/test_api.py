import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch import BitMap, CalibrationError, InfeasibleBudget, ModelError, Solution, Table, UsageError
from mpsearch.api import make_subject
from mpsearch.calibration import Calibration
from mpsearch.solving import EFFORTS


@pytest.mark.parametrize("effort", EFFORTS)
def test_allocate_meets_its_budget_on_every_kind_of_model(case, snapshot, effort):
    model, batches = case
    if effort == "thorough" and not hasattr(model, "main"):
        pytest.skip("the long effort is tried on one model")
    shot = snapshot(model)
    solution = mpsearch.allocate(
        model, batches, budgets=["bits<=4"], formats=["w2", "w3", "w4", "w6", "w8"], effort=effort
    )
    shot.check()
    layers = mpsearch.find_layers(model, batches[0])
    assert set(solution.bitmap) == {layer.name for layer in layers}
    mean = sum(layer.numel * solution.bitmap[layer.name].weight_bits for layer in layers) / layers.numel
    assert mean <= 4
    assert solution.costs["bits"] == pytest.approx(mean)
    assert solution.error.value <= solution.baselines["uniform"].error.value
    assert solution.error.value <= solution.baselines["size-only"].error.value
    assert solution.bound <= solution.baselines["uniform"].predicted
    assert solution.status == "optimal"
    assert solution.evaluations > 0
    again = make_subject(model, batches).error(solution.bitmap)
    assert again.value == solution.error.value, "the stated error is that of the map"
    said = [search.partition(": ") for search in solution.searches]
    asked = ["singles", "refine", "refine", "bayes"]
    assert [name for name, *_ in said] == asked[: len(EFFORTS[effort])]
    assert all(status in ("local optimum", "evaluations spent") for name, _, status in said if name == "refine")
    assert Solution.from_json(solution.to_json()).searches == solution.searches


def test_same_seed_same_answer(deconv):
    model, batches = deconv
    first, second = (mpsearch.allocate(model, batches, effort="standard", seed=3) for _ in range(2))
    assert first.bitmap == second.bitmap
    assert first.error == second.error


def test_an_impossible_budget_is_refused_before_anything_is_measured(deconv, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("mpsearch.sensitivity.projection.pull_back", fail)
    with pytest.raises(InfeasibleBudget):
        mpsearch.allocate(*deconv, budgets=["bits<=1"])


def test_several_budgets_hold_together(deconv):
    model, batches = deconv
    budgets = ["size<=30%", "bops<=3%", "bits<=5"]
    solution = mpsearch.allocate(model, batches, budgets, ["w2a8", "w4a8", "w6a8", "w8a8", "w4a4"], effort="fast")
    for text in budgets:
        assert solution.costs[text.split("<=")[0]] <= solution.limits[text] * (1 + 1e-9)
    assert set(solution.bitmap.ranges) == set(solution.bitmap)
    with mpsearch.quantized(model, solution.bitmap):
        pass


def test_activations_where_they_cannot_be_quantized_stay_float():
    from conftest import MODELS, build

    solution = mpsearch.allocate(
        build("attentive"), MODELS["attentive"][1](), ["bits<=5"], ["w4a8", "w6a8"], effort="fast"
    )
    assert solution.bitmap["attention.out_proj.weight"].act_bits is None
    assert solution.bitmap["attention.in_proj_weight"].act_bits == 8
    assert "uniform" in solution.baselines


def test_excluded_layers_stay_out_of_the_map(deconv):
    model, batches = deconv
    solution = mpsearch.allocate(model, batches, exclude=["main.5.*"], effort="fast")
    assert set(solution.bitmap) == {"main.0.weight", "main.3.weight"}


def test_a_table_from_another_tool_can_be_solved(deconv):
    model, batches = deconv
    layers = mpsearch.find_layers(model, batches[0])
    values = np.array([[4.0, 1.0], [9.0, 1.0], [2.0, 1.0]])
    formats = tuple(mpsearch.Format.parse(f) for f in ("w2", "w8"))
    table = Table(layers.units, formats, values, np.zeros_like(values), "mse", "someone else")
    solution = mpsearch.search(table, layers, ["bits<=5.2"])
    assert solution.error is None
    assert solution.predicted == pytest.approx(4 + 1 + 1)
    again = Solution.from_json(solution.to_json())
    assert again.bitmap == solution.bitmap
    assert again.to_json() == solution.to_json()
    assert Table.from_json(table.to_json()).to_json() == table.to_json()


def test_an_impossible_budget_says_the_smallest_feasible_value(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    with pytest.raises(InfeasibleBudget, match=r"bits<=1.5 cannot be met: the smallest feasible value is bits<=2$"):
        mpsearch.allocate(model, batches, budgets=["bits<=1.5"])
    with pytest.raises(
        InfeasibleBudget, match=r"size<=1% cannot be met: the smallest feasible value is size<=([\d.]+%)"
    ) as caught:
        mpsearch.allocate(model, batches, budgets=["size<=1%"], effort="fast")
    mpsearch.allocate(model, batches, budgets=[str(caught.value).split("value is ")[1]], effort="fast")
    shot.check()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budgets": []}, UsageError, "no budget given"),
        ({"budgets": ["bites<=8"]}, UsageError, r"unknown cost 'bites'; the closest is 'bits'"),
        ({"budgets": ["latency<=8"]}, UsageError, "latency<=8ms needs measured times"),
        ({"formats": ["w4", "w11"]}, UsageError, "unknown format 'w11'"),
        ({"formats": []}, UsageError, "no formats given"),
        (
            {"effort": "extreme"},
            UsageError,
            r"'extreme'; the closest is '\w+' of fast, standard, thorough",
        ),
        ({"include": ["conv*"]}, UsageError, "matches no layer"),
    ],
)
def test_bad_arguments_are_one_clear_line(deconv, snapshot, arguments, error, message):
    model, batches = deconv
    shot = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        mpsearch.allocate(model, batches, **arguments)
    assert "\n" not in str(caught.value)
    shot.check()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration batches"),
        (torch.zeros(4, 6), "batches is one tensor: pass a sequence of tuples"),
        ([()], "batch 0 holds no tensor"),
        ([(torch.zeros(0, 6),)], "batch 0 holds no tensor with samples"),
        ([(torch.zeros(2, 6),), (torch.full((2, 6), float("nan")),)], "batch 1 holds NaN or infinite values"),
        (["latents"], "batch 0 is a str: expected a tuple"),
    ],
)
def test_unusable_batches_are_refused(deconv, batches, message):
    with pytest.raises(CalibrationError, match=message):
        mpsearch.allocate(deconv[0], batches)


def test_batches_may_be_bare_tensors_and_carry_plain_arguments():
    class Scaled(nn.Linear):
        def forward(self, x, factor=1.0, extra=None):
            return super().forward(x) * factor

    model = Scaled(4, 4)
    x = torch.randn(4, 4)
    assert mpsearch.allocate(model, [x], effort="fast").bitmap
    assert mpsearch.allocate(model, iter([(x, 2.0, None)]), effort="fast").bitmap
    assert len(Calibration.of([x, (x, 2.0)])) == 2


def test_a_model_that_fails_half_way_is_left_alone(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    batches = [*batches, (torch.zeros(2, 9),)]
    with pytest.raises(ModelError, match=r"fails on inputs of shape \(2, 9\)"):
        mpsearch.allocate(model, batches)
    shot.check()


def test_outputs_that_overflow_are_reported(deconv, snapshot):
    model, _ = deconv
    model.main[5].bias.data.fill_(float("inf"))
    model.main[6] = nn.Identity()
    shot = snapshot(model)
    with pytest.raises(ModelError, match=r"returns \d+ NaN or infinite values"):
        mpsearch.allocate(model, [(torch.zeros(2, 6),)])
    shot.check()


def test_inner_noise_is_the_same_for_both_models():
    from conftest import MODELS, build

    model, batches = build("styled"), MODELS["styled"][1]()
    subject = make_subject(model, batches)
    assert subject.error(BitMap({})).value == 0
    torch.manual_seed(99)
    assert make_subject(model, batches).error(BitMap({"conv1.weight": "w2"})) == subject.error(
        BitMap({"conv1.weight": "w2"})
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_types(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    batches = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype),)]
    solution = mpsearch.allocate(model, batches, ["bits<=5"], ["w2a8", "w4a8", "w8a8"], effort="fast")
    assert solution.error.value > 0
    assert model[0].weight.dtype == dtype


def test_bit_maps_are_mappings():
    bitmap = BitMap({"a.weight": "w4", "b.weight": "float"})
    assert dict(bitmap) == {"a.weight": mpsearch.Format.parse("w4"), "b.weight": mpsearch.Format.parse("float")}
    assert hash(bitmap) == hash(BitMap({"b.weight": "float", "a.weight": "w4"}))
    assert bitmap.key == "a.weight=w4"
    assert "a.weight: w4" in repr(bitmap)
    with pytest.raises(TypeError):
        bitmap["a.weight"] = "w2"


def test_importing_solvers_needs_no_torch():
    code = """
import importlib.util, sys, types
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch was asked for")
sys.meta_path.insert(0, NoTorch)
package = types.ModuleType("mpsearch")  # the package without its __init__, which offers everything
package.__path__ = [importlib.util.find_spec("mpsearch").submodule_search_locations[0]]
sys.modules["mpsearch"] = package
import mpsearch.cost, mpsearch.search
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_some_samples_of_a_calibration_and_its_strata():
    x, t = torch.arange(10.0)[:, None], torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 3])
    whole = Calibration.of([(x[:6], t[:6], 7, torch.ones(2)), (x[6:], t[6:], 7, torch.ones(2))], seed=3)
    assert {name: rows.tolist() for name, rows in whole.strata().items()} == {
        "0": [0, 2, 4, 6, 8], "1": [1, 3, 5, 7], "3": [9],
    }  # fmt: skip
    part = whole.some(torch.tensor([9, 1, 2, 3, 4, 5, 6]))
    assert [len(batch[0]) for batch in part.batches] == [6, 1]
    assert torch.cat([batch[0] for batch in part.batches]).flatten().tolist() == [9, 1, 2, 3, 4, 5, 6]
    assert [batch[2:] for batch in part.batches][1][0] == 7
    assert part.seed == 3
    with pytest.raises(CalibrationError, match="argument 1 has no row a sample"):
        Calibration.of([(x[:6], 1), (x[6:], 2)]).some(torch.tensor([0]))
    assert not Calibration.of([(x,)]).strata()
    assert not Calibration.of([(torch.tensor(3.0),)]).strata()
