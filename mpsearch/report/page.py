"""``report.md``: the answer, the proof that the budget is met, and what became of the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mpsearch.types import BitMap, Interval, Layers, QualityReport, Reached, Solution, Table, within

NAMES = {  # of figures, and the factor that they are shown with
    "fd": ("Fréchet distance (FD)", 1.0),
    "fd_infinity": ("FD∞", 1.0),
    "kid": ("kernel distance ×1000", 1000.0),
}


def page(
    title: str,
    layers: Layers,
    table: Table,
    solution: Solution,
    quality: QualityReport,
    recovered: tuple[str, QualityReport] | None = None,
) -> str:
    """The whole report as Markdown."""
    parts = [
        f"# {title}",
        "![full precision and quantized samples](samples.png)",
        _answer(solution, quality),
        "## Budget\n\n" + _budget(solution),
        *(["## Target\n\n" + _target(solution.target, solution, quality)] if solution.target else []),
        "## Beside the baselines, on calibration inputs\n\n" + _baselines(solution, quality),
        *(["## On inputs that the search did not see\n\n" + _unseen(quality)] if quality.maps else []),
        "## Pictures, on held-back inputs\n\n" + _quality(quality),
        *(["## Pictures, recovered\n\n" + _recovered(quality, *recovered)] if recovered else []),
        *(["## Pictures, by class or timestep\n\n" + _strata(quality)] if quality.strata else []),
        *(["## Pictures, on the worst inputs\n\n" + _worst(quality)] if quality.worst_mse else []),
        "## Bit map and sensitivity\n\n" + _layers(layers, table, solution),
    ]
    return "\n\n".join(parts) + "\n"


def _answer(solution: Solution, quality: QualityReport) -> str:
    bound = "" if solution.bound is None else f", lower bound {solution.bound:.3e}, gap {solution.gap or 0:.1e}"
    true = f", true {solution.error.value:.3e} ± {solution.error.stderr:.1e}" if solution.error else ""
    return (
        f"Found by `{solution.method}` in {solution.seconds:.1f} s with {solution.evaluations} true evaluations. "
        f"Damage of the map (mean squared change of the output, calibration inputs): "
        f"predicted {solution.predicted:.3e}{true}. "
        f"Additive model: {solution.status}{bound}."
        + (f" Searched on from there: {', '.join(solution.searches)}." if solution.searches else "")
        + "".join(f"\n\n{sentence[0].upper()}{sentence[1:]}." for sentence in [gains(quality)] if sentence)
    )


def _budget(solution: Solution) -> str:
    rows = []
    for text, limit in solution.limits.items():
        cost = solution.costs[text.split("<=")[0]]
        rows.append([f"`{text}`", number(limit), number(cost), "yes" if within(cost, limit) else "NO"])
    budget = markdown(["budget", "limit", "this map", "met"], rows) if rows else "No budget was given."
    others = ", ".join(f"{name} {number(value)}" for name, value in solution.costs.items())
    left = ", ".join(f"`{format}` ({n} of the layers)" for format, n in solution.dominated.items())
    note = f"\n\nLeft out of the search, for they cost more and hurt more than others: {left}." if left else ""
    return f"{budget}\n\nAll costs of the map: {others}.{note}"


def _target(reached: Reached, solution: Solution, quality: QualityReport) -> str:
    target, cost = reached.target, solution.costs[reached.cost]
    if target.measure == "psnr":
        unseen = quality.psnr_db.value if quality.psnr_db else math.inf
    else:
        fd = quality.figures["fd"]
        unseen = fd.quantized.value - fd.float.value
    rows = []
    for name, value in (("calibration", reached.value), ("held-back", unseen)):
        rows.append([name, f"`{target}`", f"{value:.2f}", f"{target.margin(value):+.2f}"])
    judged = markdown(["inputs", "target", "this map", "to spare"], rows)
    uniform = "No uniform map meets it."
    if reached.uniform is not None:
        saved = f"; this map costs {1 - cost / reached.uniform:.1%} less" if cost < reached.uniform else ""
        uniform = f"The cheapest uniform map that meets it: {number(reached.uniform)}{saved}."
    return (
        f"{judged}\n\nThe target was asked for on the calibration inputs, at the least {reached.cost}: "
        f"{number(cost)}. {uniform}"
    )


def beside(quality: QualityReport, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """(head, rows): every map on both sets of inputs, and what of the gain over it was lost; brief = no intervals."""
    inputs = ["calibration", "held-back"] if brief else ["calibration PSNR, dB", "held-back PSNR, dB"]
    head = ["map", *inputs, "gain" if brief else "gain over it", "held-back gain", "overfitting"]
    rows = []
    for name, map in quality.maps.items():
        seen, unseen = (None, None) if name == "found" else quality.maps["found"].gain_over(map)
        lost = None if seen is None or unseen is None else seen - unseen
        found = "–" if map.calibration_db is None else f"{map.calibration_db:.2f}"
        gained = ["–" if gain is None else f"{gain:+.2f} dB" for gain in (seen, unseen, lost)]
        unseen_db = f"{map.psnr_db.value:.2f}" if brief and map.psnr_db else _interval(map.psnr_db, 2)
        rows.append([name, found, unseen_db, *gained])
    return head, rows


def gains(quality: QualityReport) -> str:
    """``gain over uniform: 1.2 dB on calibration inputs, 1.1 dB on held-back inputs``, or nothing."""
    if not {"found", "uniform"} <= set(quality.maps):
        return ""
    seen, unseen = quality.maps["found"].gain_over(quality.maps["uniform"])
    if seen is None or unseen is None:
        return ""
    return f"gain over uniform: {seen:.1f} dB on calibration inputs, {unseen:.1f} dB on held-back inputs"


def _unseen(quality: QualityReport) -> str:
    return (
        f"{markdown(*beside(quality))}\n\nGains are those of the found map over each of the others, from mean squared "
        "errors. Overfitting is the gain on calibration inputs less that on held-back inputs."
    )


def _baselines(solution: Solution, quality: QualityReport) -> str:
    entries = [(f"**{solution.method}**", solution.costs, solution.error)]
    entries += [(name, baseline.costs, baseline.error) for name, baseline in solution.baselines.items()]
    rows = []
    for name, costs, error in entries:
        gain = "–"
        if error and solution.error and error.value > 0 and solution.error.value > 0:
            gain = f"{10 * math.log10(error.value / solution.error.value):+.2f} dB"
        rows.append([name, *(number(cost) for cost in costs.values()), f"{error.value:.3e}" if error else "–", gain])
    return markdown(["map", *solution.costs, "true error", "gain of the answer"], rows)


def _quality(quality: QualityReport) -> str:
    floors = quality.floors
    rows = [
        ["paired PSNR, dB", _interval(quality.psnr_db, 2), _interval(floors.get("psnr_db"), 2)],
        ["paired SSIM", _interval(quality.ssim, 4), _interval(floors.get("ssim"), 4)],
        [
            "paired feature distance",
            _interval(quality.feature_distance, 4),
            _interval(floors.get("feature_distance"), 4),
        ],
        ["as a share of that between inputs", _interval(quality.feature_share, 4), "1"],
    ]
    pairs = markdown(["measure", "value [95 % interval]", "float on other seeds"], rows)
    rows = []
    for name, figure in quality.figures.items():
        text, scale = NAMES.get(name, (name, 1.0))
        found = (figure.float, figure.quantized, figure.floor)
        rows.append([text, *(_interval(value, 3, scale) for value in found)])
    head = [f"against {quality.reference}", "float", "quantized", "noise floor"]
    return "\n\n".join(
        [
            *(f"**Warning: {warning}.**" for warning in quality.warnings),
            pairs,
            markdown(head, rows),
            notes(quality),
            f"Features: {quality.features}. Figures from n = {quality.figures['fd'].float.n} generated and "
            f"{quality.reference_n} reference samples, paired pictures from n = {quality.mse.n}. An FD depends on n: "
            "compare it only at equal n; its extrapolation (FD∞) does not. The noise floor is the float generator "
            "against itself with other seeds: two halves of its images, their FD brought to n.",
        ]
    )


def notes(quality: QualityReport) -> str:
    """What the figures are against, and how much better the generator is on inputs and images that it has seen."""
    said = []
    if quality.own:
        said.append(
            "No real images were given: the reference is the float generator's own samples, so that these figures say "
            "how far quantization moved the pictures, not how good they were."
        )
    error = quality.gap.get("error_db")
    if error:
        said.append(f"Generalisation gap: held-back over calibration error {_interval(error, 2)} dB.")
    if "fd_float" in quality.gap:
        before, after = (_interval(quality.gap[name], 3) for name in ("fd_float", "fd_quantized"))
        said.append(f"FD to test less FD to training images: float {before}, quantized {after}.")
    elif not quality.own:
        said.append("The reference has no training half: whether the generator is nearer to it is not known.")
    return " ".join(said)


def _strata(quality: QualityReport) -> str:
    rows = [[name, _interval(mse, 6), f"{mse.value / quality.mse.value:.2f}"] for name, mse in quality.strata.items()]
    return markdown(["class or timestep", "paired mean squared error", "of the mean"], rows)


def _worst(quality: QualityReport) -> str:
    assert quality.worst_mse is not None
    return (
        f"Paired PSNR, dB: {_interval(quality.worst_psnr_db, 2)}, n = {quality.worst_mse.n}; "
        f"{_interval(quality.psnr_db, 2)} on held-back inputs. Gradient ascent moved as many held-back inputs to where "
        "this map does worst: latents of a normal distribution on the shell of their norm, uniform ones within their "
        "range, pictures by 8 levels of 255 at most."
    )


def _layers(layers: Layers, table: Table, solution: Solution) -> str:
    rows = []
    for index, layer in enumerate(layers):
        values = [f"{v:.1e}" if not np.isnan(v) else "–" for v in table.values[index]]
        rows.append(
            [
                f"`{layer.name}`",
                str(layer.numel),
                f"{layer.macs / 1e6:.2f}",
                f"**{solution.bitmap[layer.name].short}**{f' ({layer.rule})' if layer.rule else ''}",
                *values,
            ]
        )
    head = ["layer", "weights", "MMACs", "format", *(str(format) for format in table.formats)]
    return f"Predicted damage of each layer alone ({table.measure}, {table.source}):\n\n" + markdown(head, rows)


def _recovered(before: QualityReport, method: str, after: QualityReport) -> str:
    rows = [
        [label, _interval(own.psnr_db, 2), _interval(own.ssim, 4), _interval(own.figures["fd"].quantized, 3)]
        for label, own in (("nearest weights", before), (f"**{method}**", after))
    ]
    parts = [f"**Warning: {warning}.**" for warning in after.new_warnings(before)]
    parts += [
        markdown(["the same map", "paired PSNR, dB", "paired SSIM", "FD"], rows),
        f"The Fréchet distance of the float generator is {_interval(before.figures['fd'].float, 3)}. The recovery "
        "learnt from the float generator on other inputs; formats and bytes are those of the map.",
    ]
    return "\n\n".join(parts)


def _interval(value: Interval | None, digits: int, scale: float = 1.0) -> str:
    if value is None:
        return "–"
    return f"{value.value * scale:.{digits}f} [{value.low * scale:.{digits}f}, {value.high * scale:.{digits}f}]"


def number(value: float) -> str:
    """Whole numbers in full, others to five digits."""
    return f"{value:,.0f}" if abs(value) >= 1e4 or value == round(value) else f"{value:.5g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe(bitmap: BitMap, layers: Layers) -> str:
    """Mean widths of a map in words."""
    weights = sum(layer.numel * (bitmap[layer.name].weight_bits or 32) for layer in layers) / layers.numel
    acts = sorted({str(format.act_bits or "float") for format in bitmap.values()})
    return f"{weights:.2f} bits a weight, {'/'.join(acts)} activations"
