"""`fedhash-site check`: what would keep the site from working, and what would leave it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson, fail, print_facts, print_json

if TYPE_CHECKING:
    from fedhash_client.checks.whole_site import SiteReport
    from fedhash_client.egress.report import Egress

__all__ = ["check"]

_COLOURS = {"error": "bold red", "warning": "bold yellow"}


def check(
    site: Annotated[Path, typer.Argument(help="The site's file.", metavar="SITE.yaml")],
    connect: Annotated[
        bool, typer.Option("--connect", help="Connect to gateway and router, and compare clocks.")
    ] = False,
    show_egress: Annotated[
        bool, typer.Option("--show-egress", help="Show what would leave the site; check nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate everything that the site needs; name each fault, its place and what mends it.

    Keys, certificates, agreement, manifest and images, state, ledger, logs, ports. Ends with status
    1 when there is an error; warnings alone leave 0. A running daemon is not disturbed.
    """
    if show_egress:
        _show_egress(site, as_json=as_json)
        return
    from fedhash_client.checks.whole_site import check_site

    report = check_site(site, connect=connect)
    facts = _facts(report)
    if as_json:
        listed = [
            {
                "severity": each.severity,
                "file": str(each.problem.file),
                "line": each.problem.line,
                "message": each.problem.message,
            }
            for each in report.findings
        ]
        print_json(
            {
                **facts,
                "positive studies": report.counts.positive,
                "frozen features": report.counts.frozen,
                "problems": listed,
            }
        )
    else:
        print_facts(facts, as_json=False)
        frozen: dict[str, object] = {
            f"frozen {name}": digest for name, digest in report.counts.frozen.items()
        }
        print_facts(frozen, as_json=False)
        if report.counts.positive:
            table = Table("finding", "positive studies", box=None, header_style="dim")
            for finding, count in report.counts.positive.items():
                table.add_row(finding, str(count))
            Console().print(table)
        errors = Console(stderr=True)
        for each in report.findings:
            colour = _COLOURS[each.severity]
            text = f"[{colour}]{each.severity}:[/] {escape(str(each.problem))}"
            errors.print(text, highlight=False, soft_wrap=True)
    if not report.sound:
        raise typer.Exit(1)


def _facts(report: SiteReport) -> dict[str, object]:
    if report.site is None:
        return {}
    agreement, counts = report.site.agreement, report.counts
    facts: dict[str, object] = {"site": report.site.settings.name}
    if agreement is not None:
        facts["agreement"] = f"{agreement.name} {agreement.digest()[:12]}"
    return facts | {
        "daemon": "runs" if report.site.running else "does not run",
        "usable studies": counts.studies,
        "patients": counts.patients,
        "without consent": counts.without_consent,
        "rows with problems": counts.rows_with_problems,
    }


def _show_egress(site: Path, *, as_json: bool) -> None:
    from fedhash_client.commands.site_files import read_site
    from fedhash_client.egress.report import egress_of

    try:
        found = egress_of(*read_site(site))
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(asdict(found))
    else:
        _print_egress(found)


def _print_egress(found: Egress) -> None:
    out = Console()

    def say(text: str) -> None:
        out.print(text, highlight=False, soft_wrap=True)

    say("[bold]Connections that this site opens[/]" if found.connections else "Nothing leaves.")
    for connection in found.connections:
        say(f"  {escape(connection.to)}, {connection.protocol}, by {connection.opened_by}")
        say(f"    [dim]authenticated:[/] {connection.authenticated}")
        say(f"    [dim]carries:[/] {connection.carries}")
    for message in found.messages:
        say(f"\n[bold]{message.name}[/], at most {message.largest_bytes:,} bytes")
        say(f"  [dim]to:[/] {escape(message.to)}")
        say(f"  [dim]when:[/] {message.when}")
        for field in message.fields:
            say(f"  {field.name} [dim]({escape(field.form)})[/]: {field.meaning}")
    say("\n[bold]What listens here[/]")
    for listener in found.listens:
        say(f"  {escape(listener)}")
    say("\n[bold]What is never sent[/]")
    for never in found.never_sent:
        say(f"  {never}")
    say("\n[bold]To know[/]")
    for note in found.notes:
        say(f"  {escape(note)}")
