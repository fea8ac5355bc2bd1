"""The router's service as gRPC names it, and the settings of HTTP/2 that both ends share."""

from __future__ import annotations

from fedhash.search.wire.answers import LARGEST_MESSAGE_BYTES, LARGEST_REPLY_BYTES

__all__ = ["ASK", "ATTACH", "CHANNEL_OPTIONS", "SERVER_OPTIONS", "SERVICE"]

SERVICE = "fedhash.search.v1.Router"
ASK = "Ask"  # a SignedQuery in, a Reply out
ATTACH = "Attach"  # FromSite in, ToSite out, for as long as the site is there

_KEEPALIVE = (
    # a firewall that forgot an idle connection tells nobody
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
CHANNEL_OPTIONS = (
    *_KEEPALIVE,
    ("grpc.max_receive_message_length", LARGEST_REPLY_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
)
SERVER_OPTIONS = (
    *_KEEPALIVE,
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_REPLY_BYTES),
)
