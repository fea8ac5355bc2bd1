"""A program for the tests: uses a ledger, and is killed at a given statement of its code.

It reads requests, one JSON a line, and answers each with one JSON line. A request forks a process
that opens the ledger and reserves each event, or all of them together; after each it notes, in a
pipe, that the private step ran. At the `line`-th statement that it runs in the ledger's code,
counted from the opening of the ledger to its closing, it kills itself with SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from fedhash import durability
from fedhash.errors import BudgetError
from fedhash.privacy import (
    Ledger,
    PrivacyTerms,
    _anchor,
    accountant,
    epsilon,
    ledger,
    parse_event,
    read_ledger,
)

COARSE_GRID = 1e-2  # bounds all the same, and quick
CODE = {ledger.__file__, _anchor.__file__, durability.__file__}


def kill_at(line: int) -> None:
    left = line

    def count(frame: FrameType, kind: str, _: object) -> Any:
        nonlocal left
        if kind == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    def enter(frame: FrameType, *_: object) -> Any:
        return count if frame.f_code.co_filename in CODE else None

    sys.settrace(enter)


def use(request: dict[str, Any], ran: int) -> None:
    events = [parse_event(text) for text in request["events"]]
    terms = PrivacyTerms(epsilon_cap=request["cap"], delta=request["delta"])
    kill_at(request["line"])
    with Ledger(Path(request["ledger"]), [terms]) as opened:
        reservations = (
            [partial(opened.reserve_together, events)]
            if request["together"]
            else [partial(opened.reserve, event) for event in events]
        )
        for reserve in reservations:
            try:
                reserve()
            except BudgetError:
                os.write(ran, b"x")
            else:
                os.write(ran, b"r")


def main() -> None:
    assert threading.active_count() == 1
    accountant._FINE = COARSE_GRID
    for request in map(json.loads, sys.stdin):
        # compositions that are computed here need not be computed in every fork
        spent = [entry.event for entry in read_ledger(Path(request["ledger"]))]
        for text in request["events"]:
            spent.append(parse_event(text))
            epsilon(spent, request["delta"])
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                use(request, writing)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes = os.read(reading, 1000).decode()
        os.close(reading)
        sys.stdout.write(json.dumps({"status": status, "outcomes": outcomes}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
