r"""The daemon's log: one JSON object a line on standard error, and nothing of a patient in it.

1. Errors about data quote it (a row, a path, a study), and so may any error that is not of
   fedhash. Of these the log has the type and the place in the code, never the text; what is wrong
   with which row, `fedhash-site check` prints to whoever may see it.
2. Of the other errors of fedhash the log has the text: they speak of requests, settings and files
   of state.
3. Values of other programs are shortened, and JSON escapes what would break a line.

    >>> start_logging("hospital-a", sys.stderr)
    >>> logging.getLogger("fedhash_client").info("refused: %s", "stale_round")
    {"event": "refused: stale_round", "level": "info", "logger": "fedhash_client", "time": ...}
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from fedhash.errors import DataError, FedhashError

__all__ = ["start_logging"]

_LONGEST_TEXT = 2000
_MOST_FRAMES = 30


def start_logging(site: str, stream: TextIO) -> None:
    """Send all logging of this process to `stream`, as JSON."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _describe_error,
            _Site(site),
            structlog.processors.JSONRenderer(serializer=json.dumps),
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


class _Site:
    """Names the site on each line, and bounds the line."""

    def __init__(self, site: str) -> None:
        self._site = site

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["event"] = str(event["event"])[:_LONGEST_TEXT]
        event["site"] = self._site
        return event


def _describe_error(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    event.pop("stack_info", None)
    error = info[1] if isinstance(info, tuple) else info
    chain: list[dict[str, Any]] = []
    while isinstance(error, BaseException) and len(chain) < 5:
        about = {"type": type(error).__name__, "at": _frames(error)}
        if isinstance(error, FedhashError) and not isinstance(error, DataError):
            about["message"] = str(error)[:_LONGEST_TEXT]
        chain.append(about)
        error = error.__cause__ or error.__context__
    if chain:
        event["error"] = chain
    return event


def _frames(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__, limit=-_MOST_FRAMES)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
