"""`fedhash-sim`: the researcher's command."""

from __future__ import annotations

import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fedhash.errors import DataError, QueryError
from fedhash_sim.audits import audits
from fedhash_sim.compare_command import compare_command
from fedhash_sim.export.command import export_command
from fedhash_sim.freeze_command import freeze_command
from fedhash_sim.network_demo_command import network_demo_command
from fedhash_sim.sweeps.command import sweep_command
from fedhash_sim.terminal import AsJson, err_console, out_console, print_json, print_table, told

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
app.add_typer(audits, name="audit")
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("freeze")(freeze_command)
app.command("network-demo")(network_demo_command)
app.command("sweep")(sweep_command)

StudyFile = Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")]
RunPath = Annotated[Path, typer.Argument(help="A run folder of 'fedhash-sim run'.", metavar="RUN")]


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
        typer.Option(
            "--replace",
            help="Move an earlier run to <out>.previous (or -2, -3, ...) and start anew.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load the data, train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study, or go on with an unfinished run of it."""
    console = err_console if as_json else out_console
    again = "again without --replace" if replace else "again"
    with told(f"interrupted; run the same command {again}, it goes on where it stopped"):
        from fedhash_sim.run_folder import RunFolder, explained
        from fedhash_sim.settings import read_study
        from fedhash_sim.study_run import plan_study, run_study

        resolved = read_study(study, changes or [])
        target = out or Path("runs") / resolved.settings.name
        if dry_run:
            with explained(target):
                done = RunFolder(target).would_keep(resolved, replace=replace)
            plan = plan_study(resolved) | {"cells done": done}
            if as_json:
                print_json(plan)
            else:
                _print_plan(plan)
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


@app.command()
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Draw the report of a finished run again and print its main table."""
    with told():
        from fedhash_sim.report import write_report
        from fedhash_sim.run_folder import explained

        with explained(run):
            write_report(run)
            _show_results(run, as_json=as_json)


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
    with told():
        from fedhash.data.recipes import RECIPES
        from fedhash_sim.run_folder import explained
        from fedhash_sim.settings import RecipeSource
        from fedhash_sim.sources import find_recipe, recipe_folder

        if name is None:
            listing = {each.name: list(each.findings) for each in RECIPES.values()}
            if as_json:
                print_json(listing)
            for key, findings in {} if as_json else listing.items():
                out_console.print(f"[bold]{key}[/]: {escape(', '.join(findings))}")
            return
        chosen = find_recipe(name)
        folder = recipe_folder(RecipeSource(kind="recipe", recipe=name, folder=source))
        target = out or Path(name)
        if (target / "manifest.csv").exists():
            raise DataError(f"{target / 'manifest.csv'} is there already; name another --out")
        with explained(target):
            written = chosen.write(folder, target)
        if as_json:
            print_json({**vars(written), "manifest": str(written.manifest)})
            return
        out_console.print(
            f"{written.manifest}: {written.rows} studies, findings {', '.join(chosen.findings)}"
        )
        for reason, count in written.skipped.items():
            out_console.print(f"left out: {count} {reason}")


@app.command()
def phantom(
    out: Annotated[
        Path, typer.Argument(help="The folder to make; one folder a site in it.", metavar="FOLDER")
    ],
    sites: Annotated[
        int, typer.Option(min=1, max=1000, help="Hospitals, each with its own scanner and habits.")
    ] = 5,
    patients_per_site: Annotated[
        int, typer.Option(min=1, max=100_000, help="Patients of each hospital.")
    ] = 300,
    image_size_px: Annotated[
        int, typer.Option(min=32, max=512, help="Side of the square images.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other patients.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw a phantom consortium: images, reports, signals and a manifest for each site."""
    with told():
        from fedhash.data.phantom import PhantomSettings, export_phantom, generate_phantom
        from fedhash_sim.run_folder import explained

        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise DataError(f"{out} is there already and not empty; name another FOLDER")
        settings = PhantomSettings(
            sites=sites, patients_per_site=patients_per_site, image_size_px=image_size_px
        )
        studies = generate_phantom(settings, seed)
        counts = {}
        for site in sorted({each.attributes["site"] for each in studies}):
            own = [each for each in studies if each.attributes["site"] == site]
            with explained(out / site):
                export_phantom(own, out / site)
            counts[str(out / site / "manifest.csv")] = len(own)
        if as_json:
            print_json({"studies": counts})
        for manifest, count in {} if as_json else counts.items():
            out_console.print(f"{manifest}: {count} studies", markup=False, soft_wrap=True)


def _number(value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # passes every bound
        raise typer.BadParameter("nan is no number; give one within the bounds")
    return value


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
        typer.Option(
            min=-1,
            max=1,
            callback=_number,
            help="Bound the radius: towards 1 precise, towards -1 broad.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only hits with this attribute. May be repeated."),
    ] = None,
    abstention_margin: Annotated[
        float,
        typer.Option(
            min=0,
            max=2,
            callback=_number,
            help="Ask nobody if the best finding leads by less than this.",
        ),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Ask all sites of a run; the answer is one list in one order."""
    with told():
        from fedhash.search.filters import parse_filters
        from fedhash_sim.run_folder import explained
        from fedhash_sim.search import SimulatedConsortium

        filters = parse_filters(where or [])
        if [report_text, image, example].count(None) != 2:
            raise QueryError("give exactly one of --report, --image and --example")
        if study_id is not None and example is None:
            raise QueryError("--study belongs to --example; name the modality that asks")
        with explained(run), SimulatedConsortium.open(run) as consortium:
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
        if as_json:
            print_json(answer.as_json())
        else:
            _print_answer(answer)


def _print_answer(answer: Answer) -> None:
    question = answer.question
    out_console.print()
    # rich takes a minute to wrap a word of a hundred thousand letters
    asked = question.text if len(question.text) <= 300 else question.text[:300] + "…"
    out_console.print(f"[bold]{question.modality} → {question.target}[/]  {escape(asked)}")
    if question.findings:
        out_console.print(
            f"[dim]the study's own findings: {escape(', '.join(question.findings))}[/]"
        )
    if answer.abstained:
        out_console.print(
            "[yellow]Abstained:[/] no finding leads by the abstention margin, so nobody was asked."
        )
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("", "site", "distance", "findings", "handle"):
        table.add_column(heading, justify="right" if heading in {"", "distance"} else "left")
    for rank, hit in enumerate(answer.hits, 1):
        table.add_row(
            str(rank),
            escape(hit.site),
            str(hit.distance),
            escape(", ".join(hit.findings)),
            f"[dim]{hit.handle}[/]",
        )
    print_table(table)
    sites = sorted({hit.site for hit in answer.hits})
    out_console.print(
        f"[dim]{len(answer.hits)} hits from {len(sites)} of {answer.sites_asked} sites[/]"
    )


def _show_results(run: Path, *, as_json: bool) -> None:
    from fedhash_sim.kappa import kappa_table
    from fedhash_sim.results import main_table, read_results

    results = read_results(run)
    tables = {metric: main_table(results, metric) for metric in ("map", "macro_map")}
    if as_json:
        print_json(
            {
                "run": str(run),
                "report": str(run / "report.html"),
                "tables": {
                    metric: [
                        {
                            "query": row.query,
                            "target": row.target,
                            "chance": row.chance.as_json()["mean"],
                            **{name: each.as_json() for name, each in row.methods.items()},
                        }
                        for row in rows
                    ]
                    for metric, rows in tables.items()
                },
                "by_kappa": [row.as_json() for row in kappa_table(results)],
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
        print_table(table)
    out_console.print(f"report: {run / 'report.html'}", highlight=False, soft_wrap=True)
    out_console.print(f"run folder: {run} (results.csv, rounds.csv, plots/)", highlight=False)


def _print_plan(plan: dict[str, Any]) -> None:
    seeds = plan["seeds"]
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    done = f", {plan['cells done']} done" if plan["cells done"] else ""
    facts.add_row(
        "cells", f"{plan['cells']} ({len(plan['methods'])} methods, {len(seeds)} seeds){done}"
    )
    facts.add_row("rounds", ", ".join(f"{name}: {n}" for name, n in plan["rounds"].items()))
    facts.add_row("model", f"{plan['model parameters']:,} parameters")
    facts.add_row(
        "queries", ", ".join(f"{each['queries']} (seed {each['seed']})" for each in seeds)
    )
    out_console.print(f"[bold]{escape(plan['study'])}[/]")
    print_table(facts)
    table = Table(title="Training studies", title_justify="left", title_style="bold")
    table.add_column("site")
    for each in seeds:
        table.add_column(f"seed {each['seed']}", justify="right")
    for site in sorted({site for each in seeds for site in each["training studies"]}):
        table.add_row(escape(site), *(_held(each, site, plan) for each in seeds))
    print_table(table)
    notes = [f"seed {each['seed']}: {note}" for each in seeds for note in each["notes"]]
    for line in [*notes, *plan["rows with problems"]]:
        out_console.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan["studies without consent"]:
        out_console.print(
            f"{plan['studies without consent']} studies are left out for want of consent"
        )
    out_console.print("Nothing was trained: leave out --dry-run to start.")


def _held(seed: dict[str, Any], site: str, plan: dict[str, Any]) -> str:
    """What a site holds under a seed, for the table of a dry run."""
    if site not in seed["training studies"]:
        return "-"
    held_out = f" + {seed['database studies'][site]} held out" if plan["held-out database"] else ""
    lacks = ", ".join(seed["missing modalities"].get(site, ()))
    return f"{seed['training studies'][site]}{held_out}" + (f", no {lacks}" if lacks else "")
