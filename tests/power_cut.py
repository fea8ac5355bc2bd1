"""A process that dies between two of its file operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class PowerCut(BaseException):
    """Nothing catches it, as nothing catches a power cut."""


def cut_power_at(monkeypatch: pytest.MonkeyPatch, operation: int) -> Iterator[None]:
    """Let the process die at its n-th sync, rename or removal of a file."""
    done = 0

    def dying(original: Any) -> Any:
        def operate(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == operation:
                raise PowerCut
            return original(*arguments, **options)

        return operate

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(lambda file: None))
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        yield
