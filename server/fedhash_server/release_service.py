"""The release service: sites ask what is current and fetch its files, in chunks of 1 MB.

1. Who may ask is decided by `admit` from what TLS proved, before anything else, for each call.
2. Only files of the release that `current.json` names are given, by the names that a release has.
   Nothing of a request becomes a path before it has the form of an id or of such a name.
3. At most `LARGEST_DOWNLOADS` run at a time, and two of a site, one of which may be left of a
   broken connection; another one is told to come again. A site that reads slowly holds its place
   until its deadline, which a call must have, at most an hour away.

    >>> server.add_generic_rpc_handlers([release_handler(Path("releases"), admit)])
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fedhash.errors import CertificateError, FedhashError
from fedhash.registry.registry import CURRENT_FILE, read_current
from fedhash.registry.statement import claimed_release_id
from fedhash.registry.wire import (
    CHUNK_BYTES,
    CURRENT_METHOD,
    FETCH_METHOD,
    LARGEST_REQUEST_BYTES,
    SERVICE,
)
from fedhash.registry.wire.releases_pb2 import Chunk, CurrentReply, FetchRequest

__all__ = ["LARGEST_DOWNLOADS", "release_handler"]

LARGEST_DOWNLOADS = 6  # the router has eight threads for calls like these
_DOWNLOADS_OF_A_SITE = 2
_LONGEST_CALL_S = 3600.0
_FILE = re.compile(r"manifest\.json|model\.safetensors|frozen-[a-z][a-z0-9_]{0,63}\.safetensors")

_log = logging.getLogger(__name__)


class _Places:
    """Who downloads now."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._lock = Lock()

    def take(self, site: str) -> bool:
        with self._lock:
            if (
                self._taken[site] >= _DOWNLOADS_OF_A_SITE
                or self._taken.total() >= LARGEST_DOWNLOADS
            ):
                return False
            self._taken[site] += 1
            return True

    def give_back(self, site: str) -> None:
        with self._lock:
            self._taken[site] -= 1


def release_handler(
    folder: Path, admit: Callable[[Mapping[str, Iterable[bytes]]], str]
) -> grpc.GenericRpcHandler:
    """The service's methods for a server of grpcio.

    Args:
        folder: The registry's (`fedhash.registry.registry`).
        admit: The name of the site at the other end of a connection (`context.auth_context()`).
            Raises CertificateError if it may not fetch releases.
    """
    places = _Places()

    def check(context: Any) -> str:
        try:
            return admit(context.auth_context())
        except CertificateError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise  # abort has raised already

    def current(request: bytes, context: grpc.ServicerContext) -> bytes:
        check(context)
        if len(request) > LARGEST_REQUEST_BYTES:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is too long")
        try:
            statement = read_current(folder) or b""
        except FedhashError:
            _log.exception("%s cannot be read", folder / CURRENT_FILE)
            context.abort(grpc.StatusCode.INTERNAL, "the coordinator cannot read its releases")
        return CurrentReply(statement=statement).SerializeToString()

    def fetch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        site = check(context)
        path, offset = _asked(request, folder, context)
        if not 0 < (context.time_remaining() or 0) <= _LONGEST_CALL_S:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a fetch needs a deadline of at most {_LONGEST_CALL_S:.0f} s",
            )
        if not places.take(site):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many downloads at a time; come again"
            )
        try:
            yield from _chunks(path, offset, context)
        finally:
            places.give_back(site)

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        CURRENT_METHOD: grpc.unary_unary_rpc_method_handler(current),
        FETCH_METHOD: grpc.unary_stream_rpc_method_handler(fetch),
    }
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, methods)
    return handler


def _asked(request: bytes, folder: Path, context: Any) -> tuple[Path, int]:
    """The file of the current release that a request names, and where to begin."""
    if len(request) > LARGEST_REQUEST_BYTES:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is too long")
    try:
        asked = FetchRequest.FromString(request)
    except DecodeError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"this is no request: {error}")
    if not re.fullmatch("[0-9a-f]{64}", asked.release_id) or not _FILE.fullmatch(asked.file):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no release has a file of that name")
    try:
        statement = read_current(folder)
        current = None if statement is None else claimed_release_id(statement)
    except FedhashError:
        _log.exception("%s cannot be read", folder / CURRENT_FILE)
        context.abort(grpc.StatusCode.INTERNAL, "the coordinator cannot read its releases")
    if asked.release_id != current:
        context.abort(grpc.StatusCode.NOT_FOUND, "that release is not current; ask which one is")
    return folder / asked.release_id / asked.file, asked.offset


def _chunks(path: Path, offset: int, context: Any) -> Iterator[bytes]:
    try:
        if not path.is_file():  # a pipe would be waited for
            context.abort(grpc.StatusCode.NOT_FOUND, "that release has no such file")
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            file.seek(min(offset, total))  # beyond it, the size alone tells what is wrong
            while True:
                content = file.read(CHUNK_BYTES)
                yield Chunk(total_bytes=total, content=content).SerializeToString()
                if file.tell() >= total or not content:
                    return
    except OSError:
        _log.exception("%s cannot be read", path)
        context.abort(grpc.StatusCode.INTERNAL, "the coordinator cannot read that file")
