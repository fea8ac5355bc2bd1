"""A secure round over Flower's deployment engine, beside Flower's own averaging and its SecAgg+.

A SuperLink, three SuperNodes and everything that these start, as processes on loopback without
TLS. 100,000 float32 parameters; training is one addition everywhere, so network, process starts and
protocol are what is measured. Rules:

1. `secure` is the ServerApp and the relay that a consortium runs (fedhash_server.flower,
   fedhash_client.flower), with the sites' agents behind Unix sockets (`network_secure`). Its
   SuperNodes look for messages as those of this project do (fedhash_client.prompt_pulls); the same
   on Flower's unchanged SuperNodes, which all others have, tells how much that is worth.
2. `Flower averaging` is `flwr.serverapp.strategy.FedAvg` as it is by default: a round trains and
   evaluates. Its train exchange is told apart as well. The ClientApp imports no more than numpy;
   one that imports torch, as most do, starts more slowly.
3. `Flower SecAgg+` is `SecAggPlusWorkflow` and `secaggplus_mod` with their defaults, on the
   complete graph. It trains and does not evaluate.
4. A round lasts from the end of the one before to its own end: until its checkpoint is on disk, or
   until Flower's strategy has returned. The first round of a run is not counted: it waits for the
   sites, brings them the app and, in `secure`, makes keys in exchanges of its own.
5. The contenders run one after the other, each on a network of its own, and again in reverse order.
   They do not take turns round by round, because a SuperNode that found no message sleeps for three
   seconds: how much of that is over when a round begins must be due to the contender's own round
   before.
6. Every run checks its model against the known one.

Prints tables and writes build/bench/network.csv (case, contender, figure, unit, value). All that
was started is ended, after Ctrl-C too. Linux only.

    make bench-network
    .venv/bin/python -m benchmarks.bench_network --turns 1 --only secure "Flower averaging"
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.figures import BENCH, Figure, write_figures
from benchmarks.goals import NETWORK_SECURE
from benchmarks.network_fleet import Fleet, fleet, socket_of
from benchmarks.network_secure import PARAMETERS, SecureRun
from benchmarks.rows import as_table, network_goal_rows, network_rows

__all__ = ["CASE", "CONTENDERS", "figures_of", "note_ends", "seconds_of"]

SITES = ("site-0", "site-1", "site-2")
CASE = f"{PARAMETERS:,} parameters, {len(SITES)} sites"
SECURE, SECURE_UNCHANGED = NETWORK_SECURE
AVERAGING, SECAGG = "Flower averaging", "Flower SecAgg+"
CONTENDERS = (SECURE, SECURE_UNCHANGED, AVERAGING, SECAGG)
_MARK = re.compile(r"(round|train)-(\d+)(\.checkpoint)?")
_TIMEOUT_S = 60.0  # a round that was measured on a busy machine took a third of it
_PEERS = {  # contender to the app's name and its client's module
    AVERAGING: ("averaging", "network_averaging_client"),
    SECAGG: ("secagg_plus", "network_secagg_client"),
}
_PYPROJECT = """\
[project]
name = "bench-peer"
version = "1.0.0"
description = "A contender of benchmarks.bench_network."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedhash"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "benchmarks.network_servers:{name}"
clientapp = "benchmarks.{client}:app"

[tool.flwr.app.config]
folder = ""
sites = 0
rounds = 0
parameters = 0
"""

Seconds = dict[tuple[str, str], list[float]]  # contender and what was timed: a value a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=2, help="runs of each contender")
    parser.add_argument("--rounds", type=int, default=2, help="counted rounds of a run")
    parser.add_argument("--only", choices=CONTENDERS, nargs="+", default=CONTENDERS)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # as Ctrl-C: all is cleaned up
    console = Console()
    with TemporaryDirectory(prefix="fedhash-network-") as name:
        try:
            seconds = _measure(Path(name), chosen.only, chosen.turns, chosen.rounds, console)
        except (OSError, RuntimeError) as error:
            raise SystemExit(f"error: {error}") from error
        except KeyboardInterrupt:
            raise SystemExit("ended") from None
    figures = list(figures_of(seconds))
    write_figures(BENCH / "network.csv", Figure, figures)
    console.print(as_table(network_rows(figures), f"{CASE}: one round"))
    console.print(as_table(network_goal_rows(figures), "goals"))


def figures_of(seconds: Mapping[tuple[str, str], Sequence[float]]) -> Iterator[Figure]:
    """Median, fastest, slowest and number of what was timed."""
    for (contender, timed), values in seconds.items():
        yield Figure(CASE, contender, timed, "s", statistics.median(values))
        yield Figure(CASE, contender, f"{timed}, fastest", "s", min(values))
        yield Figure(CASE, contender, f"{timed}, slowest", "s", max(values))
        yield Figure(CASE, contender, f"{timed}, counted", "rounds", len(values))


def seconds_of(ends: Mapping[str, float], rounds: int) -> dict[str, list[float]]:
    """What each round but the first took, and its train exchange where its end was noted.

    Args:
        ends: When `round-N` and `train-N` ended, in seconds.
        rounds: The last round.

    Raises:
        RuntimeError: The end of a round is not there.
    """
    for number in range(1, rounds + 1):
        if f"round-{number}" not in ends:
            raise RuntimeError(f"round-{number} did not end")
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(2, rounds + 1):
        for timed in ("round", "train"):
            end = ends.get(f"{timed}-{number}")
            if end is not None:
                seconds[timed].append(end - ends[f"round-{number - 1}"])
    return seconds


def _measure(
    folder: Path, contenders: Sequence[str], turns: int, rounds: int, console: Console
) -> Seconds:
    seconds: Seconds = {}
    for turn in range(turns):
        for name in contenders[:: -1 if turn % 2 else 1]:
            run = partial(_peer_run, name) if name in _PEERS else _secure_run
            own = folder / f"{turn}-{contenders.index(name)}"
            own.mkdir()
            with fleet(own, SITES, own_supernodes=name == SECURE) as network:
                try:
                    measured = run(network, own, rounds + 1)
                except RuntimeError as error:
                    raise RuntimeError(f"{name}: {error}; {network.told()}") from error
            for timed, values in measured.items():
                seconds.setdefault((name, timed), []).extend(values)
                told = ", ".join(f"{value:.1f}" for value in values)
                console.print(f"turn {turn + 1}: {name}: {timed}: {told} s", highlight=False)
    return dict(sorted(seconds.items(), key=lambda item: contenders.index(item[0][0])))


def _secure_run(network: Fleet, folder: Path, rounds: int) -> dict[str, list[float]]:
    run = SecureRun(folder / "secure", SITES, rounds)
    ends: dict[str, float] = {}
    with run.daemons({site: socket_of(folder, site) for site in SITES}):
        network.run(
            run.app,
            {"folder": str(run.runs)},
            watch=partial(note_ends, run.checkpoints, ends),
            timeout_s=_TIMEOUT_S * (rounds + 2),
        )
    seconds = seconds_of(ends, rounds)
    for record in run.records()[1:]:
        for stage in dict.fromkeys(each.stage for each in record.exchanges):
            slowest = max(each.seconds for each in record.exchanges if each.stage == stage)
            seconds.setdefault(f"{stage} exchange", []).append(slowest)
    return seconds


def _peer_run(contender: str, network: Fleet, folder: Path, rounds: int) -> dict[str, list[float]]:
    name, client = _PEERS[contender]
    app, ends = folder / "app", folder / "ends"
    app.mkdir()
    ends.mkdir()
    (app / "pyproject.toml").write_text(_PYPROJECT.format(name=name, client=client), "utf-8")
    config: dict[str, str | int] = {
        "folder": str(ends),
        "sites": len(SITES),
        "rounds": rounds,
        "parameters": PARAMETERS,
    }
    noted: dict[str, float] = {}
    watch = partial(note_ends, ends, noted)
    network.run(app, config, watch=watch, timeout_s=_TIMEOUT_S * (rounds + 2))
    return seconds_of(noted, rounds)


def note_ends(folder: Path, ends: dict[str, float]) -> None:
    """Note when each file was written that marks an end, before a newer one takes its place."""
    for path in folder.glob("*-*"):
        if mark := _MARK.fullmatch(path.name):
            with suppress(FileNotFoundError):  # of the checkpoints the last two are kept
                ends.setdefault(f"{mark[1]}-{int(mark[2])}", path.stat().st_mtime)


if __name__ == "__main__":
    main()
