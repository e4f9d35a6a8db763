import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch import Budget, Format, UsageError
from mpsearch.types import parse_formats

FORMATS = st.builds(
    Format,
    kind=st.just("int"),
    bits=st.integers(2, 8),
    act_bits=st.sampled_from([None, 8, 6, 4]),
) | st.builds(Format, kind=st.sampled_from(["float", "fp16"]), act_bits=st.sampled_from([None, 8, 6, 4]))


@given(FORMATS)
def test_text_and_format_are_inverses(format):
    assert Format.parse(str(format)) == format


@pytest.mark.parametrize(
    ("text", "weight_bits", "act_bits"),
    [("w2", 2, None), ("w8", 8, None), ("w4a8", 4, 8), ("fp16", 16, None), ("float", None, None), ("a6", None, 6)],
)
def test_widths(text, weight_bits, act_bits):
    format = Format.parse(text)
    assert (format.weight_bits, format.act_bits, str(format)) == (weight_bits, act_bits, text)


@pytest.mark.parametrize("text", ["", "w1", "w9", "w4a5", "4", "int4", "w4 a8", None, 4])
def test_unknown_formats_are_refused(text):
    with pytest.raises(UsageError, match=r"unknown format .* use w2"):
        Format.parse(text)


def test_a_list_keeps_its_order_and_drops_repeats():
    assert [str(f) for f in parse_formats(["w8", "w2", "w8"])] == ["w8", "w2"]
    assert parse_formats("w4") == (Format.parse("w4"),)
    with pytest.raises(UsageError, match="no formats"):
        parse_formats([])


@pytest.mark.parametrize(
    ("text", "cost", "limit", "relative"),
    [
        ("bits<=4", "bits", 4, False),
        ("size <= 20%", "size", 0.2, True),
        ("size<=100KiB", "size", 102400, False),
        ("size<=1.5MB", "size", 1.5e6, False),
        ("bops<=1.2e11", "bops", 1.2e11, False),
    ],
)
def test_budgets(text, cost, limit, relative):
    budget = Budget.parse(text)
    assert (budget.cost, budget.limit, budget.relative) == (cost, pytest.approx(limit), relative)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["bits<4", "bits=4", "<=4", "bits<=", "bits<=4furlongs", "bits<=-1", "bits<=0", "4"])
def test_unreadable_budgets_are_refused(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_relative_budgets_scale_with_the_float_cost():
    assert Budget.parse("size<=25%").absolute(1000) == 250
    assert Budget.parse("size<=25").absolute(1000) == 25
