"""Where releases come from: the release service of the coordinator's router, over gRPC.

Nothing that comes from there is trusted here; `download` and `follower` verify it.

    >>> source = GrpcReleases(lambda: open_channel(settings.network))
    >>> source.current()
    b'{"signature": ...'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import grpc
from google.protobuf.message import DecodeError

from fedhash.errors import MessageError, ProtocolError
from fedhash.registry.wire import CHUNK_BYTES, CURRENT_METHOD, FETCH_METHOD, SERVICE
from fedhash.registry.wire.releases_pb2 import Chunk, CurrentReply, CurrentRequest, FetchRequest

__all__ = ["GrpcReleases", "ReleaseSource", "untold"]

_CURRENT_TIMEOUT_S = 30.0
_FETCH_TIMEOUT_S = 3000.0  # then it goes on where it was


def untold(done: int, total: int) -> None:
    """Progress that nobody looks at."""


@runtime_checkable
class ReleaseSource(Protocol):
    """The coordinator's releases, seen from a site; nothing of it is trusted."""

    def current(self) -> bytes:
        """The signed statement of what is current; empty before the first.

        Raises:
            ProtocolError: The coordinator does not answer.
        """
        ...

    def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        """A file's size and bytes, piece by piece, from an offset on.

        Raises:
            ProtocolError: The coordinator does not answer, or has no such file.
        """
        ...


class GrpcReleases:
    """The service over a channel that is opened for each question."""

    def __init__(self, channel: Callable[[], grpc.Channel]) -> None:
        self._channel = channel

    def current(self) -> bytes:
        """See `ReleaseSource.current`."""
        with _explained(), self._channel() as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/{SERVICE}/{CURRENT_METHOD}"
            )
            reply = ask(CurrentRequest().SerializeToString(), timeout=_CURRENT_TIMEOUT_S)
            return CurrentReply.FromString(reply).statement

    def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        """See `ReleaseSource.fetch`."""
        request = FetchRequest(release_id=release_id, file=file, offset=offset)
        with _explained(), self._channel() as channel:
            ask: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
                f"/{SERVICE}/{FETCH_METHOD}"
            )
            for piece in ask(request.SerializeToString(), timeout=_FETCH_TIMEOUT_S):
                chunk = Chunk.FromString(piece)
                if len(chunk.content) > CHUNK_BYTES:
                    raise MessageError(f"a piece of {len(chunk.content):,} bytes was sent")
                yield chunk.total_bytes, chunk.content


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details()  # of every call that ended
        raise ProtocolError(
            f"the coordinator's release service does not answer ({code.name.lower()}: {details}); "
            "it is asked again"
        ) from error
    except DecodeError as error:
        raise MessageError(f"the release service sent no message of its own ({error})") from error
