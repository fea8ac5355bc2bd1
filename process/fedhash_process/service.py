"""What a daemon runs beside its sockets: objects that start, stop and tell how they are.

>>> class Follower:
...     name = "releases"
...     def start(self): ...      # returns at once; work goes on in threads of its own
...     def stop(self): ...       # returns when they have ended
...     def status(self): return {"healthy": True, "release": "5a0c"}
>>> daemon.add(Follower())
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

__all__ = ["Service", "Status"]

Status: TypeAlias = dict[str, str | int | float | bool | None]


@runtime_checkable
class Service(Protocol):
    """One part of the daemon."""

    name: str

    def start(self) -> None:
        """Begin; what takes long goes on in the background.

        Raises:
            FedhashError: It cannot begin, and the daemon ends.
        """
        ...

    def stop(self) -> None:
        """End, within seconds."""
        ...

    def status(self) -> Status:
        """How it is: `healthy`, and facts of its own.

        Never anything of a patient or a study, and no exact number of them.
        """
        ...
