"""The command line: commands, progress bars and exit codes; no logic."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as Sheet

from mpsearch import recovery_run
from mpsearch.config import MethodConfig, RunConfig, load_config, options_of
from mpsearch.cost import COSTS
from mpsearch.errors import MpsearchError
from mpsearch.export import read_map
from mpsearch.model import one_line
from mpsearch.recovery import RECOVERERS
from mpsearch.recovery_run import resumed
from mpsearch.report import sheets
from mpsearch.run import Run
from mpsearch.sensitivity import ESTIMATORS
from mpsearch.sensitivity.compare import agreement

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
screen = Console()
notes = Console(stderr=True)

Config = Annotated[Path | None, typer.Argument(help="A run config in YAML; without one, the embedded generator.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A run config in YAML; without one, the embedded generator.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; a killed run continues in it. By default runs/NAME.")]
BudgetOption = Annotated[list[str] | None, typer.Option(help="'bits<=4', 'size<=20%', 'coded<=15%'; may be repeated.")]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="'psnr>=35', 'fd<=float+0.5': the smallest map that is so good.")
]
LatencyFile = Annotated[
    Path | None, typer.Option("--latency", help="Measured layer,format,milliseconds (.csv, .json).")
]
FormatOption = Annotated[list[str] | None, typer.Option("--format", help="w2 … w8, w4a8, fp16 …; may be repeated.")]
Effort = Annotated[str | None, typer.Option(help="fast, standard or thorough.")]
Groups = Annotated[int | None, typer.Option(help="Different widths that the channels of one layer may have.")]
SolverOption = Annotated[str | None, typer.Option("--solver", help="ilp, bayes, refine …; replaces an effort.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]
MapFile = Annotated[Path | None, typer.Option("--bitmap", help="A map (.json, .yaml, .csv) in place of the found one.")]


@app.command()
def layers(config: Config = None, out: Out = None) -> None:
    """List what can be quantized, with weights, MACs and activation elements of one sample.

    Example: `mpsearch layers configs/zoo-dcgan-faces.yaml`
    """
    with working(config, out) as run:
        show(sheets.of_layers(run.layers))


@app.command()
def sensitivity(
    config: Config = None,
    out: Out = None,
    estimator: Annotated[str | None, typer.Option(help=f"{', '.join(ESTIMATORS)}.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All estimators, and how well each ranks the true error.")
    ] = False,
    strata: Annotated[
        bool, typer.Option("--strata", help="Also in every class or timestep of the calibration inputs.")
    ] = False,
    formats: FormatOption = None,
    seed: Seed = None,
) -> None:
    """Predict the damage of every layer in every format.

    Example: `mpsearch sensitivity configs/zoo-dcgan-faces.yaml --estimator hessian`
    """
    chosen = {"name": estimator} if estimator else None
    with working(config, out, estimator=chosen, formats=formats, seed=seed) as run:
        table = run.sensitivity
        parts = run.strata if strata else {}
        tables = {name: run.table(name) for name in ESTIMATORS} if compare else {}
    show(sheets.of_table(table))
    if parts:
        show(sheets.of_strata(parts))
    if tables:
        show(sheets.of_agreement({name: agreement(other, tables["perturbation"]) for name, other in tables.items()}))
        floor = (tables["fid-proxy"].notes or {})["noise_floor"]
        show([f"noise floor of the Fréchet distance: {floor:.3g}"])


@app.command()
def search(
    config: Config = None, out: Out = None, budget: BudgetOption = None, formats: FormatOption = None,
    effort: Effort = None, solver: SolverOption = None, groups: Groups = None, latency: LatencyFile = None,
    target: TargetOption = None, seed: Seed = None,
) -> None:  # fmt: skip
    """Find the best bit map under the budgets.

    Example: `mpsearch search --budget 'size<=15%' --budget 'bops<=12%' --effort fast`
    """
    chosen = {"name": solver} if solver else None
    asked = {"budgets": budget, "formats": formats, "effort": effort, "solver": chosen, "groups": groups, "seed": seed}
    with working(config, out, latency=latency and latency.resolve(), target=target, **asked) as run:
        solution = run.solution
    show(sheets.of_solution(solution))


@app.command()
def validate(config: Config = None, out: Out = None, bitmap: MapFile = None, seed: Seed = None) -> None:
    """Compare float and quantized pictures on held-back inputs: PSNR, SSIM, Fréchet and kernel distance.

    Example: `mpsearch validate --bitmap my-map.json --out runs/mine`
    """
    with working(config, out, seed=seed) as run:
        quality = (
            run.quality
            if bitmap is None
            else run.validate(run.addressed(read_map(bitmap), bitmap.stem), f"quality-{bitmap.stem}")
        )
    show(sheets.of_quality(quality))


@app.command()
def compare(
    maps: Annotated[list[Path], typer.Argument(help="Bit maps: ours, or names and widths of another tool.")],
    config: ConfigOption = None, out: Out = None, seed: Seed = None,
) -> None:  # fmt: skip
    """Compare bit maps on one generator, one quantizer and the same held-back inputs: a table and a plot.

    Example: `mpsearch compare ours.json theirs.json --config configs/zoo-dcgan-faces.yaml`
    """
    names = [path.stem for path in maps]
    labels = [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names, 1)]
    with working(config, out, seed=seed) as run:
        rows = run.compare(dict(zip(labels, map(read_map, maps), strict=True)))
    show([*sheets.of_comparison(rows), str(run.folder.path / "comparison.png")])


@app.command()
def pareto(
    config: Config = None,
    out: Out = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(help=f"What is traded for damage, repeatable: {', '.join(COSTS)}; size by default."),
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="At most so many maps.")] = 40,
    budget: BudgetOption = None,
    formats: FormatOption = None,
    seed: Seed = None,
) -> None:
    """Show what every further byte (BOP, bit) buys: the best maps from the least cost to the least predicted damage.

    Every map meets `--budget`; those of the config are not asked.

    Example: `mpsearch pareto configs/zoo-dcgan-faces.yaml --cost size --cost bops`
    """
    traded = cost or ["size"]
    with working(config, out, formats=formats, seed=seed) as run:
        rows = run.frontier(traded, points, budget or ())
    show([*sheets.of_frontier(rows, traded, run.sensitivity.measure), str(run.folder.path / "frontier.png")])


@app.command()
def export(
    config: Config = None, out: Out = None, bitmap: MapFile = None,
    coded: Annotated[bool, typer.Option("--coded", help="Also with codes in fewer bytes, entropy-coded.")] = False,
    seed: Seed = None,
) -> None:  # fmt: skip
    """Write the map as JSON, YAML and CSV, and the generator as one bit-packed safetensors file.

    Example: `mpsearch export configs/zoo-dcgan-faces.yaml --out runs/faces`
    """
    with working(config, out, seed=seed) as run:
        files = run.export(None if bitmap is None else run.addressed(read_map(bitmap), bitmap.stem), coded)
    show(f"{kind}: {path} ({path.stat().st_size:,} bytes)" for kind, path in files.items())


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(RECOVERERS)}; repeated: one after the other; by default what the config says."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the last method, such as steps=1000; may be repeated.")
    ] = None,
) -> None:
    """Train the weights of the found map to draw the pictures of the float generator; formats and bytes stay.

    Example: `mpsearch recover runs/sagan --method distil --option steps=1000`
    """
    config = resumed(folder)
    *first, last = [MethodConfig(name=name) for name in method or ()] or config.recover or [MethodConfig(name="distil")]
    asked = [*first, MethodConfig(name=last.name, options=last.options | options_of(option or ()))]
    with working(config, folder) as work:
        found = recovery_run.recover(work, asked)
    show(sheets.of_recovery(found.method, found.seconds, found.before, found.after))


@app.command()
def run(
    config: Config = None, out: Out = None, budget: BudgetOption = None, formats: FormatOption = None,
    effort: Effort = None, groups: Groups = None, latency: LatencyFile = None, target: TargetOption = None,
    seed: Seed = None,
) -> None:  # fmt: skip
    """Everything: layers, sensitivity, search, validation, export and report.

    Example: `mpsearch run my.yaml --budget 'bits<=3' --effort fast --out runs/mine`
    """
    asked = {"budgets": budget, "formats": formats, "effort": effort, "groups": groups, "seed": seed}
    with working(config, out, latency=latency and latency.resolve(), target=target, **asked) as work:
        recovery_run.check(work)
        solution, quality = work.solution, work.quality
        work.export()
        report = work.report()
        asked_again = work.config.recover or recovery_run.made(work)
        recovered = recovery_run.recover(work, asked_again) if asked_again else None
    show(sheets.of_solution(solution))
    show(sheets.of_quality(quality))
    if recovered:
        show(sheets.of_recovery(recovered.method, recovered.seconds, recovered.before, recovered.after))
    made = sorted(path for path in report.parent.rglob("*") if path.is_file())
    # Parts are what a killed run would go on from.
    show(str(path) for path in made if "parts" not in path.relative_to(report.parent).parts)


def show(shown: Iterable[Sheet | str]) -> None:
    for part in shown:
        if isinstance(part, str):
            screen.print(part, soft_wrap=True, markup=False, highlight=False)
        else:
            screen.print(part)


@contextmanager
def working(config: Path | RunConfig | None, out: Path | None, **overrides: Any) -> Iterator[Run]:
    """A run with progress bars on standard error."""
    settings = config if isinstance(config, RunConfig) else load_config(config, **overrides)
    folder = out or Path("runs") / (config.stem if isinstance(config, Path) else "sagan")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with warnings.catch_warnings(), Progress(*columns, console=notes, disable=not notes.is_terminal) as bars:
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        yield Run(settings, folder, _bar(bars), _say)


def _say(text: str) -> None:
    notes.print(text, soft_wrap=True, markup=False, highlight=False)


def _bar(bars: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return progress


def main() -> None:
    """Entry point: whatever was wrong is one line on standard error and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except MpsearchError as error:
        message = str(error)
    except (typer.Abort, KeyboardInterrupt):
        notes.print("mpsearch: interrupted; the same command continues", style="red")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("MPSEARCH_TRACEBACK"):
            raise
        usage = getattr(error, "format_message", None)  # of the argument parser
        message = f"{usage()} (see mpsearch --help)" if usage else f"{one_line(error)} (MPSEARCH_TRACEBACK=1: where)"
    notes.print(f"mpsearch: {message}", style="red", soft_wrap=True, markup=False, highlight=False)
    sys.exit(2)


if __name__ == "__main__":
    main()
