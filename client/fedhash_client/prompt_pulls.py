"""Make this process's SuperNode look for the next message soon after it has answered one.

Flower's SuperNode sleeps for three seconds when it finds no message. A secure round has two
exchanges, and the second begins just after the sites have looked in vain, so most of a small
round would be that sleep. Rules:

1. After an answer the node looks four times a second, for a minute. Where the slowest site takes
   longer than that, Flower's three seconds no longer matter.
2. An idle node looks as often as Flower has it look: hundreds of them cost the SuperLink nothing.
3. The node's own loop, its heartbeats and its errors stay Flower's: one call of one client class
   takes longer. That was tried with Flower 1.41; whoever calls this checks the version.

    >>> pull_promptly()
    >>> flower_supernode()
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse

__all__ = ["pull_promptly"]

_INTERVAL_S = 0.25
_WINDOW_S = 60.0
# Flower's own setting: the node's launcher asks it for work every second, unless told otherwise
_LAUNCHER_INTERVAL = ("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")


def pull_promptly() -> None:
    """Exchange the class of the client that the SuperNode of this process will make.

    A class that was put there before stays its base. To be called before the SuperNode starts.
    """
    from flwr.supernode import fleet_http_connection

    class PromptFleetClient(fleet_http_connection.FleetHttpClient):  # type: ignore[misc]
        """Comes back from an empty pull only when there has been nothing for a while."""

        _answered = False

        def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
            until = time.monotonic() + (_WINDOW_S if self._answered else 0.0)
            self._answered = False
            while True:
                response: PullMessagesResponse = super().PullMessages(request)
                if response.messages_list:  # the node answers it before it calls again
                    self._answered = True
                    return response
                if time.monotonic() >= until:
                    return response
                time.sleep(_INTERVAL_S)

    fleet_http_connection.FleetHttpClient = PromptFleetClient  # type: ignore[attr-defined]
    os.environ.setdefault(*_LAUNCHER_INTERVAL)
