"""`fedhash-site`: the command of one data holder."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.errors import FedhashError
from fedhash_client.commands.check import check
from fedhash_client.commands.daemon import run, status
from fedhash_client.commands.init import init, unit
from fedhash_client.commands.search import search
from fedhash_client.commands.withdrawal import audit, rebuild_index, withdraw
from fedhash_client.settings import SiteSettings
from fedhash_process.printing import AsJson
from fedhash_process.printing import fail as _fail
from fedhash_process.printing import print_json as _print_json

if TYPE_CHECKING:
    from fedhash_client.privacy_budget import Budget

__all__ = ["app"]

app = typer.Typer(
    help="Keep one site's part of a consortium: its data, its index, its answers.\n\n"
    "Start with: fedhash-site init FOLDER --name NAME",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)
for _command in (init, check, unit, run, status, search, withdraw, rebuild_index, audit):
    app.command()(_command)

SiteFile = Annotated[Path, typer.Argument(help="The site's file.", metavar="SITE.yaml")]
ReleaseFolder = Annotated[Path, typer.Option("--release", help="Folder of a released model.")]


@app.command()
def identity(
    key: Annotated[Path, typer.Argument(help="The private key's file.", metavar="KEY.pem")],
    as_json: AsJson = False,
) -> None:
    """Make the site's identity where there is none, and print its public key for the agreement.

    The private key never leaves the site; only its owner may read the file.
    """
    from fedhash.secagg.identity import SiteIdentity

    try:
        made = not key.exists()
        if made:
            SiteIdentity.generate().save(key)
        public = SiteIdentity.load(key).public_hex
    except (FedhashError, OSError) as error:
        _fail(error)
    if as_json:
        _print_json({"key": str(key), "made": made, "public_key": public})
    else:
        sys.stdout.write(f"{public}\n")


@app.command()
def index(site: SiteFile, release: ReleaseFolder, as_json: AsJson = False) -> None:
    """Encode the archive with a released model, for a site without a daemon.

    The old index stays until the new is whole; meanwhile searches go by words.
    """
    from fedhash.registry.release import load_release
    from fedhash_client.releases.download import install_release
    from fedhash_client.releases.served import ServedReleases, check_release

    try:
        settings, agreement = _read(site)
        check_release(load_release(release), agreement)
        with Progress(console=_err) as bars, ServedReleases(settings, agreement) as served:
            task = bars.add_task("encoding", total=None)
            now = served.adopt(
                install_release(release, served.releases),
                lambda done, total: bars.update(task, completed=done, total=total),
            )
            counts = {name: now.archive.count(name) for name in now.model.modalities}
    except (FedhashError, OSError) as error:
        _fail(error)
    if as_json:
        _print_json({"archive": str(settings.archive), "entries": counts})
    else:
        held = ", ".join(f"{count} {modality}" for modality, count in counts.items())
        _out.print(f"{settings.archive}: {held}", highlight=False, soft_wrap=True)


@app.command()
def budget(
    site: SiteFile,
    round_file: Annotated[
        Path | None, typer.Option("--round", help="The round to come.", metavar="ROUND.yaml")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the privacy ledger; show what is spent and left, and what a round would cost.

    Ends with status 1 when the ledger does not verify, or when the round does not fit.
    """
    from fedhash_client.privacy_budget import plan_steps, read_budget

    try:
        settings, agreement = _read(site)
        modes = () if settings.privacy is None else settings.privacy.modes
        planned = None if round_file is None else plan_steps(round_file, agreement, modes)
        found = read_budget(site, settings, agreement, planned)
    except (FedhashError, OSError) as error:
        _fail(error)
    if as_json:
        _print_json(asdict(found))
    else:
        _print_budget(found)
    if found.next_round is not None and not found.next_round.fits:
        raise typer.Exit(1)


def _print_budget(found: Budget) -> None:
    if found.exists:
        verified = f"{found.entries} entries, verified; anchor {found.anchor}"
    else:
        verified = "no ledger yet, nothing was spent; the first private step makes it"
    _out.print(f"{escape(found.ledger)}: {verified}", highlight=False, soft_wrap=True)
    caps = Table("cap of", "delta", "epsilon cap", "spent", "left", box=None, header_style="dim")
    for cap in found.caps:
        caps.add_row(
            cap.of,
            f"{cap.delta:g}",
            f"{cap.epsilon_cap:g}",
            f"{cap.spent.together:.3f}",
            f"{cap.left:.3f}",
        )
    _out.print(caps)
    for cap in found.caps:
        if cap.spent.shared_noise:
            _out.print(
                f"[dim]at delta {cap.delta:g}:[/] the site's own noise {cap.spent.own_noise:.3f}; "
                f"noise added together {cap.spent.shared_noise:.3f}, if {cap.spent.trust}",
                highlight=False,
            )
    if found.events:
        events = Table(
            *("purpose", "mechanism", "sigma", "q", "steps", "entries"),
            box=None,
            header_style="dim",
        )
        for group in found.events:
            events.add_row(
                escape(group.purpose),
                group.kind,
                f"{group.noise_multiplier:g}",
                f"{group.sampling_rate:g}",
                str(group.steps),
                str(group.entries),
            )
        _out.print(events)
    if found.next_round is not None:
        planned = found.next_round
        sigma, releases = planned.statistics_noise_multiplier, planned.statistics_releases
        statistics = "" if sigma is None else f"; margin statistics, sigma {sigma:g}"
        _out.print(
            f"the next round (mode {planned.mode}, {planned.steps} steps, "
            f"sigma {planned.noise_multiplier:g}, q {planned.sampling_rate:.3g}{statistics}):",
            highlight=False,
        )
        if planned.mode == "distributed":
            _out.print(
                f"  [bold]its noise is added together by the sites[/], so this holds if "
                f"{planned.trust}",
                highlight=False,
            )
        for after in planned.after:
            _out.print(
                f"  {after.of}: epsilon {after.together:.3f} after it, {after.cost:.3f} more; "
                + ("it fits" if after.fits else "[bold red]it is refused[/]"),
                highlight=False,
            )
        _out.print(
            f"  at least {planned.rounds_left} such rounds are left, "
            f"or {planned.steps_left} such steps"
            + (f", beside {releases} releases of margin statistics" if releases else ""),
            highlight=False,
        )


def _read(site: Path) -> tuple[SiteSettings, Agreement]:
    settings = read_settings(site, SiteSettings)
    return settings, read_settings(settings.agreement, Agreement)
