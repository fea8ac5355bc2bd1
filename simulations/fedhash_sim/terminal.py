"""What all commands of `fedhash-sim` share: consoles, JSON, and errors in one line.

>>> with told():
...     run_study(...)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson

__all__ = ["AsJson", "err_console", "out_console", "print_json", "told"]

out_console = Console()
err_console = Console(stderr=True)


@contextmanager
def told(interrupted: str = "interrupted") -> Iterator[None]:
    """End a command that cannot go on with one line and its exit code, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt as error:
        err_console.print(interrupted, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from error  # 128 + SIGINT, as shells count
    except ModuleNotFoundError as error:
        err_console.print(
            "[bold red]error:[/] fedhash-sim needs the extra 'sim': "
            + escape(f"pip install 'fedhash[sim]' (there is no module {error.name!r})"),
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1) from error
    except FedhashError as error:
        err_console.print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error


def print_json(value: object) -> None:
    """Print a JSON-able value and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()  # a reader that has gone is noticed here, where the command ends quietly
