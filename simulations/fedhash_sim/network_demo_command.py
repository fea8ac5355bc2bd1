"""`fedhash-sim network-demo`: a whole consortium on this machine, in separate processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from fedhash_sim.terminal import AsJson, err_console, out_console, print_json, told

__all__ = ["network_demo_command"]


def network_demo_command(
    out: Annotated[
        Path, typer.Option(help="The folder; an earlier demo in it is replaced.")
    ] = Path("runs/network-demo"),
    as_json: AsJson = False,
) -> None:
    """Enrol, train, release, search, withdraw and lose a site: three sites on loopback.

    Its servers are processes of their own and end with it. It needs nginx: apt-get install
    nginx-light.
    """
    with told():
        from fedhash_sim.network_demo import run_network_demo

        started = time.monotonic()

        def tell(line: str) -> None:
            seconds = time.monotonic() - started
            err_console.print(f"{seconds:6.1f} s  {line}", markup=False, highlight=False)

        signal.signal(signal.SIGTERM, _interrupt)  # so that the parties end with the demo
        facts = run_network_demo(out, tell) | {"seconds": round(time.monotonic() - started, 1)}
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        out_console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
