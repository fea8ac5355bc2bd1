"""The bytes of the release service: protobuf messages, and their bounds.

What they carry is verified by whoever uses it (`fedhash.registry.statement`, `.release`): here is
only what keeps a peer from sending too much. `make proto` compiles `releases.proto`.
"""

from __future__ import annotations

__all__ = [
    "CHUNK_BYTES",
    "CURRENT_METHOD",
    "FETCH_METHOD",
    "LARGEST_REQUEST_BYTES",
    "SERVICE",
]

SERVICE = "fedhash.registry.Releases"
CURRENT_METHOD = "Current"
FETCH_METHOD = "Fetch"
CHUNK_BYTES = 1_000_000  # with its envelope below the 1 MiB that the router lets a message have
LARGEST_REQUEST_BYTES = 1 << 10
