"""The Flower ServerApp that trains one run over the network, and the app folder that starts it.

The app that a coordinator launches holds configuration only: the code that touches data is the
wheel which each site has installed, and the sites vet three YAML files instead of a program. The
ServerApp reads those files from the bundle that Flower unpacked, trains, and leaves a checkpoint
after each round; a run that is started again goes on from the last one.

    >>> write_app_folder(Path("app"), Path("agreement.yaml"), Path("round.yaml"), Path("run.yaml"))
    $ flwr run app CONNECTION --run-config 'folder="/var/lib/fedhash/runs"'
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from flwr.app import Context
from flwr.common.config import get_project_dir  # not public, but no public name tells the folder
from flwr.serverapp import Grid, ServerApp

import fedhash
from fedhash.agreement import Agreement
from fedhash.bundle import (
    AGREEMENT_NAME,
    METADATA_NAME,
    ROUND_NAME,
    RUN_NAME,
    SERVER_COMPONENT,
    SITE_COMPONENT,
)
from fedhash.configuration import gathered, problem_at, read_settings, resolved
from fedhash.errors import ConfigurationError, Problem, StorageError
from fedhash.models.layout import Layout
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundRecord
from fedhash.rounds.engine import Engine
from fedhash.rounds.run import coordinator_of, run_rounds
from fedhash.rounds.settings import RoundSettings, check_release, check_roster, check_round
from fedhash.rounds.training_messages import RunPlan
from fedhash.secagg.outlook import sum_outlook
from fedhash_server.first_model import first_model
from fedhash_server.flower_engine import FlowerEngine
from fedhash_server.run_lock import training
from fedhash_server.run_release import keep_inputs
from fedhash_server.settings import RunSettings

__all__ = ["app", "train_run", "write_app_folder"]

logger = logging.getLogger(__name__)

# After a failed round, and twice as long after a second one. A site that was killed needs some ten
# seconds until Flower knows that it is away; then it is waited for.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 60.0
_LOOK_S = 1.0

_NAME = b'name = "fedhash-app"'  # tells an app that was written here
_PYPROJECT = f"""\
[project]
{_NAME.decode()}
version = "{fedhash.__version__}"
description = "Configuration of one fedhash run; the code is the installed fedhash wheel."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedhash"
fab-include = ["{AGREEMENT_NAME}", "{ROUND_NAME}", "{RUN_NAME}"]

[tool.flwr.app.components]
serverapp = "{SERVER_COMPONENT}"
clientapp = "{SITE_COMPONENT}"

[tool.flwr.app.config]
folder = "runs"
"""


def write_app_folder(folder: Path, agreement: Path, rounds: Path, run: Path) -> tuple[str, ...]:
    """Write the Flower app of one run: metadata and copies of its three files.

    Args:
        folder: The app's folder, made if need be; `flwr run` and `flwr build` take it. An app that
            stands there already is replaced.
        agreement: The consortium's agreement.
        rounds: The round file.
        run: The run file.

    Returns:
        What works, and worse than was perhaps meant; a sentence each.

    Raises:
        ConfigurationError: A file is wrong, they do not fit each other, or the folder holds
            anything else than an app.
        ModelError: The first model cannot be made.
        ReleaseError: The release that the run starts from does not verify.
        StorageError: The folder cannot be written.
    """
    terms, settings, roster = _read_run(agreement, rounds, run)
    layout = first_model(terms, settings, roster).layout  # or it fails here
    try:
        _check_folder(folder)
        sources = {AGREEMENT_NAME: agreement, ROUND_NAME: rounds, RUN_NAME: run}
        contents = {name: source.read_bytes() for name, source in sources.items()}
        if roster.parent or roster.frozen:  # read elsewhere, a relative path would lead nowhere
            contents[RUN_NAME] = resolved(roster).encode()
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / METADATA_NAME).write_text(_PYPROJECT, encoding="utf-8")
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise StorageError(error, folder) from error
    if settings.aggregation == "plain":
        return ()
    return sum_outlook(_plan(terms, settings, roster, layout), layout.size, terms).warnings


def _read_run(
    agreement: Path, rounds: Path, run: Path
) -> tuple[Agreement, RoundSettings, RunSettings]:
    """The three files of a run, if they fit each other."""
    problems: list[Problem] = []
    with gathered(problems):
        terms = read_settings(agreement, Agreement)
    with gathered(problems):
        settings = read_settings(rounds, RoundSettings)
    with gathered(problems):
        roster = read_settings(run, RunSettings)
    if problems:
        raise ConfigurationError(problems)
    refused = check_round(settings, terms) + check_release(settings)
    problems = [problem_at(rounds, *each) for each in refused]
    if fault := check_roster(settings, terms, len(roster.sites)):
        problems.append(problem_at(run, ("sites",), f"sites: {fault}"))
    strangers = [site for site in roster.sites if site not in terms.sites]
    if strangers and (terms.sites or settings.aggregation == "secure"):
        message = (
            f"sites has no identity of {', '.join(strangers)}; an agreement that names its sites "
            "is for these alone, and secure aggregation takes keys of no others: add their public "
            "keys"
        )
        problems.append(problem_at(agreement, ("sites",), message))
    if problems:
        raise ConfigurationError(problems)
    return terms, settings, roster


def _plan(
    agreement: Agreement, settings: RoundSettings, run: RunSettings, layout: Layout
) -> RunPlan:
    return RunPlan(
        run_id=run.run_id,
        agreement_digest=agreement.digest(),
        layout_digest=layout.digest(),
        sites=tuple(sorted(run.sites)),
        settings=settings,
    )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything else than an app of this module."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    app = {METADATA_NAME, "configs", AGREEMENT_NAME, ROUND_NAME, RUN_NAME}
    named = METADATA_NAME in found and _NAME in (folder / METADATA_NAME).read_bytes()
    if found and not (named and found <= app):
        message = "is neither empty nor an app that was written here; name a new or empty folder"
        raise ConfigurationError([Problem(folder, None, message)])


def train_run(engine: Engine, bundle: Path, folder: Path) -> Path:
    """Train the run that a bundle describes, going on from its last checkpoint.

    Args:
        engine: Reaches the sites.
        bundle: Folder that holds the run's three files.
        folder: For runs; this one's checkpoints go to `folder/RUN_ID/checkpoints`.

    Returns:
        The folder of the checkpoints.

    Raises:
        ConfigurationError: A file of the bundle is wrong, or they do not fit each other.
        ModelError: What the first model is made of is missing, or of another model.
        ReleaseError: The release that the run starts from does not verify.
        CheckpointError: The folder holds another run of this name.
        ProtocolError: Three rounds in a row failed.
        AuditError: The margin schedule's log was altered.
        StorageError: The operating system refuses that log; the run goes on from its last
            checkpoint when it is started again.
    """
    agreement, settings, run = _read_run(
        bundle / AGREEMENT_NAME, bundle / ROUND_NAME, bundle / RUN_NAME
    )
    first = first_model(agreement, settings, run)
    plan = _plan(agreement, settings, run, first.layout)
    keep_inputs(folder / run.run_id, agreement, first)
    checkpoints = Checkpoints(folder / run.run_id / "checkpoints")
    state = checkpoints.load(plan) or CoordinatorState.start(plan, agreement, first.vector)
    run_rounds(
        coordinator_of(plan, agreement, state),
        engine,
        checkpoints,
        _log_round,
        on_failures=lambda in_a_row: _await_sites(engine, run.sites, in_a_row),
    )
    return folder / run.run_id / "checkpoints"


def _await_sites(engine: Engine, sites: Collection[str], in_a_row: int) -> None:
    """Pause after failed rounds, longer while a site is away."""
    until = time.monotonic() + _LONGEST_PAUSE_S * in_a_row
    time.sleep(_SHORTEST_PAUSE_S * in_a_row)
    while time.monotonic() < until and not set(sites) <= set(engine.sites):
        time.sleep(_LOOK_S)


def _log_round(record: RoundRecord) -> None:
    logger.info(
        "round %d: %s, %s; %s; notes: %s",
        record.round_number,
        record.failure or "ok",
        record.sites,
        record.aggregation,
        record.notes,
    )


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the run of the bundle that Flower has unpacked."""
    bundle = get_project_dir(grid.run.fab_id, grid.run.fab_version, grid.run.fab_hash)
    run = read_settings(bundle / RUN_NAME, RunSettings)
    folder = Path(str(context.run_config["folder"]))
    with training(folder / run.run_id):
        train_run(FlowerEngine(grid, run.sites), bundle, folder)
