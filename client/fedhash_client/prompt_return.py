"""Let this process's SuperNode take the place of one that was killed, without a minute's wait.

For up to a minute the SuperLink takes a killed node for one that is online: it refuses the site's
next node, and tells nobody that the message which the killed one had fetched is lost. If the next
node came in the moment in which the minute ends, nobody would be told at all, and whoever waits for
the answer would wait until the round's own end. Rules:

1. While a node is online, the number that the SuperLink gave it stands in a file. A node that ends
   in order signs off and removes the file.
2. A node that finds the file signs the one before off, under the key that both have, and stays away
   for some seconds: the coordinator, which looks every second, learns that the message is lost.
3. One file is one node's: the daemon holds the lock of its state folder, and its SuperNode ends
   with it. A copy of a site's folder at another place would sign the site's own node off.
4. That was tried with Flower 1.41; whoever calls this checks the version.

    >>> return_promptly(Path("state/flower/node"))
    >>> flower_supernode()
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from fedhash.durability import replace_file

if TYPE_CHECKING:
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        ActivateNodeResponse,
        DeactivateNodeRequest,
        DeactivateNodeResponse,
    )

__all__ = ["return_promptly"]

_AWAY_S = 5.0
_LARGEST_NUMBER = 1 << 64

_log = logging.getLogger(__name__)


def return_promptly(path: Path) -> None:
    """Exchange the class of the client that the SuperNode of this process will make.

    A class that was put there before stays its base. To be called before the SuperNode starts.

    Args:
        path: Of the file with the node's number.
    """
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supernode import fleet_http_connection

    class ReturningFleetClient(fleet_http_connection.FleetHttpClient):  # type: ignore[misc]
        """Signs off whoever was there before, and leaves word of itself."""

        def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
            before = _number(path)
            if before is not None:
                try:
                    super().DeactivateNode(DeactivateNodeRequest(node_id=before))
                except httpx.HTTPStatusError as error:
                    if error.response.is_server_error:  # Flower asks again
                        raise
                    _log.info("the node before is not online any more")
                time.sleep(_AWAY_S)
            response: ActivateNodeResponse = super().ActivateNode(request)
            replace_file(path, f"{response.node_id}\n".encode())
            return response

        def DeactivateNode(  # noqa: N802
            self, request: DeactivateNodeRequest
        ) -> DeactivateNodeResponse:
            response: DeactivateNodeResponse = super().DeactivateNode(request)
            path.unlink(missing_ok=True)
            return response

    fleet_http_connection.FleetHttpClient = ReturningFleetClient  # type: ignore[attr-defined]


def _number(path: Path) -> int | None:
    """The number in the file; None where there is no file, or nothing that a node wrote."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0
    return number if 0 < number < _LARGEST_NUMBER else None
