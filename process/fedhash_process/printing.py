"""How commands print results and end with an error."""

from __future__ import annotations

import json
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from fedhash.errors import FedhashError, StorageError

__all__ = ["AsJson", "fail", "print_facts", "print_json"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_facts(facts: dict[str, object], *, as_json: bool) -> None:
    """Print a result, one line a fact or as JSON."""
    if as_json:
        print_json(facts)
        return
    out = Console()
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        out.print(f"[dim]{name}:[/] {escape(text)}", highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a result for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fail(error: FedhashError | OSError) -> NoReturn:
    """End the command with the error's text and status 1."""
    if isinstance(error, OSError):
        error = StorageError(error)
    message = f"[bold red]error:[/] {escape(str(error))}"
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error
