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
from rich.table import Table

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson

__all__ = ["AsJson", "err_console", "out_console", "print_json", "print_table", "told"]

out_console = Console()
err_console = Console(stderr=True)
_WIDEST = 10_000  # characters of a line


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
    except BrokenPipeError:
        raise  # nobody reads our output any more; click ends quietly
    except OSError as error:
        what = f"{error.filename} cannot be used" if error.filename else "the system refuses"
        err_console.print(
            f"[bold red]error:[/] {escape(what)} ({escape(error.strerror or str(error))}); check "
            "the path, rights and disk space",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1) from error
    except FedhashError as error:
        err_console.print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error


def print_table(table: Table) -> None:
    """Print a table: fitted to a terminal, at its own width into a file or a pipe."""
    width = None
    if not out_console.is_terminal:
        unlimited = out_console.options.update(max_width=_WIDEST)
        width = max(out_console.width, out_console.measure(table, options=unlimited).maximum)
    Console(width=width).print(table)


def print_json(value: object) -> None:
    """Print a JSON-able value and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()  # a reader that has gone is noticed here, where the command ends quietly
