"""`fedhash-coordinator`: the command of the one who brings the sites together."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedhash.agreement import Agreement
from fedhash.configuration import gathered, problem_at, read_settings
from fedhash.errors import ConfigurationError, FedhashError, Problem
from fedhash.offline import FLOWER_SWITCHES
from fedhash_process.printing import AsJson
from fedhash_process.printing import fail as _fail
from fedhash_server.commands.enrolment import enrol, init, strike
from fedhash_server.commands.releases import release, rollback
from fedhash_server.commands.search import search
from fedhash_server.commands.servers import run, status, train, unit

if TYPE_CHECKING:
    from fedhash.models.layout import Layout
    from fedhash.rounds.settings import RoundSettings
    from fedhash.secagg.outlook import SumOutlook

__all__ = ["app"]

app = typer.Typer(
    help="Bring sites together: enrol them, train with them, release what they learnt.\n\n"
    "Start with: fedhash-coordinator init FOLDER --name CONSORTIUM --host HOST",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
audit = typer.Typer(help="Check what a run wrote down of itself.", no_args_is_help=True)
app.add_typer(audit, name="audit")
app.add_typer(release, name="release")
for _command in (init, enrol, strike, run, status, train, rollback, search, unit):
    app.command()(_command)
_out = Console()
_err = Console(stderr=True)


@app.command()
def check(
    agreement: Annotated[
        Path, typer.Argument(help="The agreement's file.", metavar="AGREEMENT.yaml")
    ],
    round_file: Annotated[
        Path | None, typer.Option("--round", help="A round file to check against it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate an agreement, build its anchors, and check a round file against it."""
    from fedhash.codes import hamming_distances, pack_signs
    from fedhash.models.anchors import Anchors
    from fedhash.models.hash_model import build_model
    from fedhash.models.layout import Layout
    from fedhash.rounds.settings import RoundSettings, check_release, check_roster, check_round
    from fedhash.secagg.packing import packed_bytes

    try:
        problems: list[Problem] = []
        warnings: tuple[str, ...] = ()
        with gathered(problems):
            terms = read_settings(agreement, Agreement)
        if round_file is not None:
            with gathered(problems):
                settings = read_settings(round_file, RoundSettings)
            if not problems:
                refused = check_round(settings, terms) + check_release(settings)
                problems += [problem_at(round_file, *p) for p in refused]
                fault = check_roster(settings, terms, len(terms.sites)) if terms.sites else None
                if fault is not None:
                    problems.append(problem_at(agreement, ("sites",), f"sites: {fault}"))
        if problems:
            raise ConfigurationError(problems)
        anchors = Anchors.build(terms)
        codes = pack_signs(anchors.matrix)
        distances = hamming_distances(codes, codes)
        apart = [int(distances[i, j]) for i in range(len(codes)) for j in range(i)]
        facts = {
            "agreement": f"{terms.name}, version {terms.version}",
            "digest": terms.digest(),
            "findings": len(terms.findings),
            "code bits": terms.code_bits,
            "anchors": anchors.digest(),
            "anchors apart (bits)": f"{min(apart)} to {max(apart)}",
            "sites": len(terms.sites),
            "smallest cohort": terms.smallest_cohort,
            "margin range": f"{terms.margin_range[0]} to {terms.margin_range[1]}",
        }
        if terms.privacy is not None:
            facts["privacy modes"] = ", ".join(terms.privacy.modes)
        if round_file is not None:
            layout = Layout.of(
                build_model(settings.model, terms.code_bits, seed=0, anchors=anchors)
            )
            facts |= {
                "towers": ", ".join(
                    f"{modality}: {tower.name}" for modality, tower in settings.model.towers.items()
                ),
                "model parameters": layout.size,
                "layout": layout.digest(),
                "rounds": settings.rounds,
                "aggregation": settings.aggregation,
            }
            if settings.privacy.shares_noise:
                ring = terms.secure_aggregation.ring_bits
                facts |= {
                    "steps a round": "1, over all patients, whatever it costs on the network",
                    "bytes of the model to a site, a round": 4 * layout.size,  # float32
                    "bytes of the sum from a site, a round": packed_bytes(layout.size, ring),
                }
            if settings.aggregation == "secure" and terms.sites:
                outlook = _outlook(settings, terms, layout)
                facts |= {
                    f"rounding sd, sites of weight {weight:g}": {
                        block: float(f"{sd:.3g}") for block, sd in sds.items()
                    }
                    for weight, sds in outlook.rounding_sd.items()
                }
                if outlook.shared_noise is not None:
                    facts["shared noise, over the sensitivity"] = {
                        name: float(f"{value:.4g}")
                        for name, value in asdict(outlook.shared_noise).items()
                    }
                warnings = outlook.warnings
    except (FedhashError, OSError) as error:
        _fail(error)
    _show(facts, warnings, as_json=as_json)


@app.command()
def bundle(
    agreement: Annotated[Path, typer.Option(help="The agreement's file.")],
    round_file: Annotated[Path, typer.Option("--round", help="The round file.")],
    run: Annotated[Path, typer.Option(help="The run file: which sites train.")],
    out: Annotated[Path, typer.Option(help="The app's folder; new, empty or an earlier app.")],
    as_json: AsJson = False,
) -> None:
    """Check a run's three files and write the Flower app that starts it, without any code."""
    from fedhash_server.flower import write_app_folder

    try:
        warnings = write_app_folder(out, agreement, round_file, run)
    except (FedhashError, OSError) as error:
        _fail(error)
    # `flwr run` is a process of Flower's own, which the switches of this one do not reach
    switches = [f"{name}={value}" for name, value in FLOWER_SWITCHES.items()]
    flwr = "flwr" if shutil.which("flwr") else str(Path(sys.executable).with_name("flwr"))
    start = [flwr, "run", str(out.resolve()), "CONNECTION", "--run-config", 'folder="RUNS"']
    _show({"app": str(out), "start": shlex.join([*switches, *start])}, warnings, as_json=as_json)


@audit.command()
def verify(
    log: Annotated[Path, typer.Argument(help="A run's margin_audit.jsonl.", metavar="FILE")],
    agreement: Annotated[
        Path | None, typer.Option(help="The agreement that every step must keep to.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash of the log that was noted earlier.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the chain of a margin schedule's audit log and compute each of its steps anew."""
    from fedhash.audit_log import START, read_audit_log
    from fedhash.rounds.margin_audit import verify_margin_audit

    try:
        terms = None if agreement is None else read_settings(agreement, Agreement)
        entries = read_audit_log(log, noted=START if head is None else head)
        verified = verify_margin_audit(entries, terms)
    except (FedhashError, OSError) as error:
        _fail(error)
    facts: dict[str, object] = {
        "run": verified.run_id,
        "entries": len(entries),
        "steps after rounds": list(verified.rounds),
        "rounds asked again": list(verified.asked_again),
        "head": entries[-1].hash if entries else START,
    }
    warnings = []
    if head in {None, START}:  # START stands for no entry: every log holds it
        warnings.append(
            "entries missing at the end, or a log written anew, are found only with a --head that "
            "was noted of it before; note the one above"
        )
    if terms is None:
        warnings.append("the range and the step are those that the log names; give --agreement")
    _show(facts, warnings, as_json=as_json)


def _outlook(settings: RoundSettings, terms: Agreement, layout: Layout) -> SumOutlook:
    """What the secure sums of a run with all sites of the agreement will be like."""
    from fedhash.rounds.training_messages import RunPlan
    from fedhash.secagg.outlook import sum_outlook

    plan = RunPlan(
        run_id="check",
        agreement_digest=terms.digest(),
        layout_digest=layout.digest(),
        sites=tuple(sorted(terms.sites)),
        settings=settings,
    )
    return sum_outlook(plan, layout.size, terms)


def _show(facts: dict[str, object], warnings: Sequence[str] | None, *, as_json: bool) -> None:
    """Print a result and, where a command can have them, its warnings."""
    if as_json:
        more = {} if warnings is None else {"warnings": list(warnings)}
        sys.stdout.write(json.dumps(facts | more, indent=2) + "\n")
    else:
        for name, value in facts.items():
            _out.print(f"[dim]{name}:[/] {escape(str(value))}", highlight=False, soft_wrap=True)
    for warning in warnings or ():
        _err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
