"""The relay: a Flower ClientApp that hands each message to the site and returns its answer.

Flower starts a fresh process for every message, so the data, the policy and the warm model live
elsewhere, in the site's long-lived half: behind a Unix socket in a hospital, in a Ray actor in a
simulation. Rules:

1. The relay reads nothing: one opaque byte array goes in, one comes out. The site validates.
2. Where the site listens is the site's own setting (Flower's node config). The run config comes
   from the coordinator and is never looked at.
3. The relay imports neither torch nor the model code: it starts in half a second.
4. A site that cannot be reached is an error reply with `ENDPOINT_ERROR`, never a crash.

A SuperNode names both settings when it starts:

    flower-supernode --node-config 'site="hospital-a" site-socket="/run/fedhash/site.sock"' ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhash.errors import MessageError, ProtocolError
from fedhash_client.site_socket import SiteSocket

__all__ = ["ENDPOINT_ERROR", "SiteEndpoint", "app", "daemon_of_this_node", "relay_app"]

ENDPOINT_ERROR = 1001  # Flower's own codes are 0 to 8 (flwr.common.constant.ErrorCode)


class SiteEndpoint(Protocol):
    """The way to a site's long-lived half."""

    @property
    def name(self) -> str:
        """Name of the site in the agreement."""
        ...

    def answer(self, request: bytes, timeout_s: float) -> bytes:
        """Send an encoded message to the site and return its encoded reply.

        Raises:
            ProtocolError: The site cannot be reached or did not answer in time.
        """
        ...


def relay_app(find_endpoint: Callable[[Context], SiteEndpoint]) -> ClientApp:
    """A ClientApp that relays to the endpoint which `find_endpoint` names.

    Args:
        find_endpoint: Called for each message with Flower's context of this node; raises
            ProtocolError when the node has no endpoint.
    """
    client_app = ClientApp()

    @client_app.query("identify")
    def identify(message: Message, context: Context) -> Message:
        try:
            name = find_endpoint(context).name
        except ProtocolError as error:
            return _error_reply(error, message)
        return Message(RecordDict({"site": ConfigRecord({"name": name})}), reply_to=message)

    @client_app.query("relay")
    def relay(message: Message, context: Context) -> Message:
        try:
            request = _message_bytes(message.content)
            answer = find_endpoint(context).answer(request, message.metadata.ttl)
        except ProtocolError as error:
            return _error_reply(error, message)
        # an array, because Flower sends arrays in chunks and everything else in one piece
        array = Array("uint8", (len(answer),), "fedhash", answer)
        return Message(RecordDict({"message": ArrayRecord({"bytes": array})}), reply_to=message)

    return client_app


def daemon_of_this_node(context: Context) -> SiteEndpoint:
    """The site's daemon, as named by this node's own configuration.

    Raises:
        ProtocolError: The node config names no site or no socket.
    """
    site, path = context.node_config.get("site"), context.node_config.get("site-socket")
    if not (isinstance(site, str) and isinstance(path, str)):
        raise ProtocolError(
            "this SuperNode does not know its site: start it with "
            """--node-config 'site="NAME" site-socket="PATH"'"""
        )
    return SiteSocket(site, path)


def _message_bytes(content: RecordDict) -> bytes:
    record = content.array_records.get("message")
    if record is None or list(record) != ["bytes"]:
        raise MessageError(
            "the relay expects one array record 'message' with one array 'bytes'; "
            "the coordinator runs another version of fedhash"
        )
    return record["bytes"].data


def _error_reply(error: ProtocolError, request: Message) -> Message:
    return Message(Error(ENDPOINT_ERROR, str(error)), reply_to=request)


app = relay_app(daemon_of_this_node)
