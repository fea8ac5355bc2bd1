"""`fedhash-sim`: the researcher's command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fedhash.errors import DataError, FedhashError, QueryError

if TYPE_CHECKING:
    from fedhash_sim.search import Answer

__all__ = ["app"]

app = typer.Typer(
    help="Simulate a consortium of sites: one YAML file in, tables, plots and a report out.\n\n"
    "Start with: fedhash-sim run configs/study/demo.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_out = Console()
_err = Console(stderr=True)

StudyFile = Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")]
RunPath = Annotated[Path, typer.Argument(help="A run folder of 'fedhash-sim run'.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _fail(error: FedhashError) -> NoReturn:
    _err.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


@app.command()
def run(
    study: StudyFile,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one value of the study, or of the files it names: "
            "seeds=[0,1,2], round.rounds=40, agreement.code_bits=32. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default: runs/<name of the study>.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Cells that train at once; default: one a core."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Move an earlier run to <out>.previous and start anew."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load the data, train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study, or go on with an unfinished run of it."""
    from fedhash_sim.settings import read_study
    from fedhash_sim.study_run import plan_study, run_study

    console = _err if as_json else _out
    try:
        resolved = read_study(study, changes or [])
        target = out or Path("runs") / resolved.settings.name
        if dry_run:
            plan = plan_study(resolved)
            if as_json:
                _print_json(plan)
            else:
                _print_facts(plan)
            return
        folder = run_study(
            resolved,
            target,
            workers=workers or os.cpu_count() or 1,
            replace=replace,
            command=shlex.join(["fedhash-sim", *sys.argv[1:]]),
            console=console,
        )
        _show_results(folder.path, as_json=as_json)
    except FedhashError as error:
        _fail(error)


@app.command()
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Draw the report of a finished run again and print its main table."""
    from fedhash_sim.report import write_report

    try:
        write_report(run)
        _show_results(run, as_json=as_json)
    except FedhashError as error:
        _fail(error)


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="The set; without it, list all.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="The set's folder; default: $FEDHASH_DATA/NAME.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the manifest; default: NAME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the manifest of a public data set, without copying its images."""
    from fedhash.data.recipes import RECIPES
    from fedhash_sim.settings import RecipeSource
    from fedhash_sim.sources import find_recipe, recipe_folder

    try:
        if name is None:
            listing = {each.name: list(each.findings) for each in RECIPES.values()}
            if as_json:
                _print_json(listing)
            for key, findings in {} if as_json else listing.items():
                _out.print(f"[bold]{key}[/]: {', '.join(findings)}")
            return
        chosen = find_recipe(name)
        folder = recipe_folder(RecipeSource(kind="recipe", recipe=name, folder=source))
        target = out or Path(name)
        if (target / "manifest.csv").exists():
            raise DataError(f"{target / 'manifest.csv'} is there already; name another --out")
        written = chosen.write(folder, target)
        if as_json:
            _print_json({**vars(written), "manifest": str(written.manifest)})
            return
        _out.print(
            f"{written.manifest}: {written.rows} studies, findings {', '.join(chosen.findings)}"
        )
        for reason, count in written.skipped.items():
            _out.print(f"left out: {count} {reason}")
    except FedhashError as error:
        _fail(error)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="FOLDER")],
    sites: Annotated[int, typer.Option(min=1)] = 5,
    patients_per_site: Annotated[int, typer.Option(min=1)] = 300,
    image_size_px: Annotated[int, typer.Option(min=32, max=512)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a phantom consortium: images, reports, signals and a manifest for each site."""
    from fedhash.data.phantom import PhantomSettings, export_phantom, generate_phantom

    settings = PhantomSettings(
        sites=sites, patients_per_site=patients_per_site, image_size_px=image_size_px
    )
    try:
        studies = generate_phantom(settings, seed)
        for site in sorted({each.attributes["site"] for each in studies}):
            own = [each for each in studies if each.attributes["site"] == site]
            export_phantom(own, out / site)
            _out.print(f"{out / site / 'manifest.csv'}: {len(own)} studies")
    except FedhashError as error:
        _fail(error)


@app.command()
def search(
    run: RunPath,
    report_text: Annotated[
        str | None, typer.Option("--report", help="Search for studies like this report.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Search for studies like this image (PNG or JPEG).")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(metavar="MODALITY", help="Search with a query study's image, report, ..."),
    ] = None,
    study_id: Annotated[
        str | None, typer.Option("--study", help="Which query study --example takes.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The modality to search in; default: the query's own.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits wanted.")] = 8,
    kappa: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Bound the radius: towards 1 precise, towards -1 broad."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only hits with this attribute. May be repeated."),
    ] = None,
    abstention_margin: Annotated[
        float,
        typer.Option(min=0, max=2, help="Ask nobody if the best finding leads by less than this."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Ask all sites of a run; the answer is one list in one order."""
    from fedhash.search.filters import parse_filters
    from fedhash_sim.search import SimulatedConsortium

    try:
        filters = parse_filters(where or [])
        with SimulatedConsortium.open(run) as consortium:
            if [report_text, image, example].count(None) != 2:
                raise QueryError("give exactly one of --report, --image and --example")
            if study_id is not None and example is None:
                raise QueryError("--study belongs to --example; name the modality that asks")
            if example is not None:
                question = consortium.example(example, study_id, target)
            elif report_text is not None:
                question = consortium.question("report", report_text, target)
            else:
                question = consortium.question("image", str(image), target)
            answer = consortium.ask(
                question,
                k=k,
                kappa=kappa,
                filters=filters,
                abstention_margin=abstention_margin,
            )
    except FedhashError as error:
        _fail(error)
    if as_json:
        _print_json(answer.as_json())
    else:
        _print_answer(answer)


def _print_answer(answer: Answer) -> None:
    question = answer.question
    _out.print()
    _out.print(f"[bold]{question.modality} → {question.target}[/]  {_escaped(question.text)}")
    if question.findings:
        _out.print(f"[dim]the study's own findings: {', '.join(question.findings)}[/]")
    if answer.abstained:
        _out.print(
            "[yellow]Abstained:[/] no finding leads by the abstention margin, so nobody was asked."
        )
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("", "site", "distance", "findings", "handle"):
        table.add_column(heading, justify="right" if heading in {"", "distance"} else "left")
    for rank, hit in enumerate(answer.hits, 1):
        table.add_row(
            str(rank),
            _escaped(hit.site),
            str(hit.distance),
            ", ".join(hit.findings),
            f"[dim]{hit.handle}[/]",
        )
    _out.print(table)
    sites = sorted({hit.site for hit in answer.hits})
    _out.print(f"[dim]{len(answer.hits)} hits from {len(sites)} of {answer.sites_asked} sites[/]")


def _show_results(run: Path, *, as_json: bool) -> None:
    from fedhash_sim.results import main_table, read_results

    results = read_results(run)
    tables = {metric: main_table(results, metric) for metric in ("map", "macro_map")}
    if as_json:
        _print_json(
            {
                "run": str(run),
                "report": str(run / "report.html"),
                "tables": {
                    metric: [
                        {
                            "query": row.query,
                            "target": row.target,
                            "chance": row.chance.mean,
                            **{name: each.as_json() for name, each in row.methods.items()},
                        }
                        for row in rows
                    ]
                    for metric, rows in tables.items()
                },
            }
        )
        return
    for metric, title in (("map", "mAP"), ("macro_map", "mAP, mean over findings")):
        rows = tables[metric]
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("direction")
        for method in (*rows[0].methods, "chance"):
            table.add_column(method, justify="right")
        for row in rows:
            table.add_row(
                f"{row.query} → {row.target}",
                *(str(each) for each in row.methods.values()),
                f"[dim]{row.chance}[/]",
            )
        _out.print(table)
    _out.print(f"report: {run / 'report.html'}", highlight=False, soft_wrap=True)
    _out.print(f"run folder: {run} (results.csv, rounds.csv, plots/)", highlight=False)


def _print_facts(plan: dict[str, object]) -> None:
    for name, value in plan.items():
        if isinstance(value, dict):
            _print_facts(value)
        else:
            _out.print(f"[dim]{name}:[/] {_escaped(str(value))}", highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
