"""`fedhash-sim audit`: measurements that can refute a claim of privacy, one file a command.

>>> fedhash-sim audit sensitivity --out sensitivity.png
>>> fedhash-sim audit canary --noise-multiplier 1.2 --steps 40
>>> fedhash-sim audit linkage runs/demo
"""

from __future__ import annotations

import typer

from fedhash_sim.audits.canary import canary
from fedhash_sim.audits.linkage import linkage
from fedhash_sim.audits.sensitivity import sensitivity

__all__ = ["audits"]

audits = typer.Typer(help="Measure whether privacy holds what it claims.", no_args_is_help=True)
audits.command()(sensitivity)
audits.command()(canary)
audits.command()(linkage)
