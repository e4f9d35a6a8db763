import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch import BitMap, Budget, Format, Unit, UsageError
from mpsearch.types import parse_formats

FORMATS = (
    st.builds(
        Format,
        kind=st.just("int"),
        bits=st.integers(2, 8),
        act_bits=st.sampled_from([None, 8, 6, 4]),
    )
    | st.builds(
        Format.of_channels, st.lists(st.integers(2, 8), min_size=1, max_size=9), st.sampled_from([None, 8, 6, 4])
    )
    | st.builds(Format, kind=st.sampled_from(["float", "fp16"]), act_bits=st.sampled_from([None, 8, 6, 4]))
)


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


def test_a_width_for_every_channel():
    format = Format.parse("w[2*3,4,8*2]a8")
    assert format.channel_bits == (2, 2, 2, 4, 8, 8)
    assert format.weight_bits == pytest.approx(26 / 6)
    assert format.act_bits == 8
    assert Format.of_channels([4, 4]) == Format.parse("w4") == Format.parse("w[4,4]")
    with pytest.raises(UsageError, match="use one of 2 … 8"):
        Format.of_channels([2, 9])


def test_units_of_channels_make_a_layer():
    w2, w4 = parse_formats(["w2", "w4"])
    parts = {Unit("a", (0, 2)): w2, Unit("a", (1,)): w4, Unit("b"): w4}
    bitmap = BitMap.from_units(parts)
    assert dict(bitmap) == {"a": Format.parse("w[2,4,2]"), "b": w4}
    assert BitMap.from_json(bitmap.to_json()) == bitmap
    entry = bitmap.to_json()["layers"]["a"]
    assert (entry["channel_bits"], entry["weight_bits"]) == ([2, 4, 2], pytest.approx(8 / 3))
    assert BitMap.from_json({"layers": {"a": {"channel_bits": [2, 4, 2], "act_bits": None}}})["a"] == bitmap["a"]
    with pytest.raises(UsageError, match="do not make up the layer"):
        BitMap.from_units({Unit("a", (0, 2)): w2})
    with pytest.raises(UsageError, match="need integer weights"):
        BitMap.from_units({Unit("a", (0,)): w2, Unit("a", (1,)): Format.parse("fp16")})


@pytest.mark.parametrize(
    "text",
    [
        "w[]",
        "w[9]",
        "w[2*]",
        "w[2,,4]",
        "",
        "w0",
        "w9",
        "w4r",
        "w4gz",
        "k8",
        "k13x3",
        "p9",
        "w4r8z",
        "w4a5",
        "4",
        "int4",
        "w4 a8",
        None,
        4,
    ],
)
def test_unknown_formats_are_refused(text):
    with pytest.raises(UsageError, match=r"unknown format .* use w1"):
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
