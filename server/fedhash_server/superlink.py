"""The coordinator's own access to Flower's SuperLink on loopback: its nodes and its runs.

The SuperLink is verified by the consortium's authority; it asks whoever is on this machine for no
credential. Flower's own commands do not tell which key a node has, so its client is used.

    >>> with SuperLink(folder, settings) as superlink:
    ...     superlink.keep_nodes(read_roster(folder))
    NodeChanges(registered=('hospital-c',), unregistered=())
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedhash.errors import CertificateError, ProtocolError, StorageError
from fedhash.flower_version import check_flower_version
from fedhash.offline import exempt_loopback
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.coordinator_settings import CoordinatorSettings
from fedhash_server.roster import EnrolledSite

__all__ = ["FlowerRun", "NodeChanges", "SuperLink", "SuperLinkSilentError", "bundle_hash"]

_T = TypeVar("_T")
_UNREGISTERED = "unregistered"
_FINISHED = "finished"


class SuperLinkSilentError(ProtocolError):
    """The SuperLink does not answer: it does not run, or not yet."""


@dataclass(frozen=True)
class NodeChanges:
    """What `keep_nodes` did: names of sites.

    Attributes:
        registered: Their keys are known now.
        unregistered: Their keys are refused from now on, for good.
        refused: Flower refuses their keys: they were struck off once, and it takes no key twice.
    """

    registered: tuple[str, ...] = ()
    unregistered: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class FlowerRun:
    """A run as Flower knows it.

    Attributes:
        number: Flower's own name of it.
        bundle: SHA-256 of its bundle, 64 hex digits.
        finished: Whether Flower has ended it.
        outcome: "completed", "failed" or "stopped"; empty before the end.
        details: Why it failed, in Flower's words.
    """

    number: int
    bundle: str
    finished: bool
    outcome: str
    details: str


class SuperLink:
    """A connection to the SuperLink of `folder`.

    Raises:
        ProtocolError: Another version of Flower is installed.
        StorageError: The authority's certificate cannot be read.
    """

    def __init__(self, folder: CoordinatorFolder, settings: CoordinatorSettings) -> None:
        check_flower_version()
        exempt_loopback(os.environ)
        try:
            ca = folder.ca.read_bytes()
        except OSError as error:
            raise StorageError(error, folder.ca) from error
        self._address = f"localhost:{settings.superlink.port}"
        self._client = ControlHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def __enter__(self) -> SuperLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def nodes(self) -> dict[str, str]:
        """Name of each registered node to its status: "registered", "online" or "offline"."""
        found = self._ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return {node.name: node.status for node in found if node.status != _UNREGISTERED}

    def keep_nodes(self, roster: Mapping[str, EnrolledSite]) -> NodeChanges:
        """Register the enrolled sites' SuperNode keys, and unregister all others.

        Raises:
            CertificateError: What stands in the place of a site's key is none.
            ProtocolError: The SuperLink does not answer, or refuses.
        """
        wanted = {_pem(site): name for name, site in roster.items()}
        known = self._ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        live = {bytes(node.public_key): node for node in known if node.status != _UNREGISTERED}
        gone = {bytes(node.public_key) for node in known if node.status == _UNREGISTERED}
        unregistered = []
        for key, node in live.items():
            if key not in wanted:
                self._ask(
                    partial(
                        self._client.UnregisterNode, UnregisterNodeRequest(node_id=node.node_id)
                    )
                )
                unregistered.append(node.name)
        registered = []
        for key, name in wanted.items():
            if key not in live and key not in gone:
                request = RegisterNodeRequest(public_key=key, name=name)
                self._ask(partial(self._client.RegisterNode, request))
                registered.append(name)
        refused = tuple(name for key, name in wanted.items() if key in gone)
        return NodeChanges(tuple(registered), tuple(unregistered), refused)

    def start_run(self, app: Path, folder: Path) -> int:
        """Start the bundle of an app folder; its checkpoints go to `folder`.

        Returns:
            Flower's number of the run.

        Raises:
            ProtocolError: The SuperLink does not answer, or refuses.
        """
        content = _bundle(app)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab),
            override_config=user_config_to_proto({"folder": str(folder.resolve())}),
        )
        reply = self._ask(lambda: self._client.StartRun(request))
        if not reply.HasField("run_id"):
            raise ProtocolError(f"Flower did not start the run: {reply.note or 'no reason given'}")
        number: int = reply.run_id
        return number

    def runs(self, bundle: str) -> tuple[FlowerRun, ...]:
        """The runs of one bundle, the newest last.

        Raises:
            ProtocolError: The SuperLink does not answer.
        """
        found = self._ask(lambda: self._client.ListRuns(ListRunsRequest())).run_dict
        runs = sorted(found.values(), key=lambda run: run.pending_at)
        return tuple(
            FlowerRun(
                number=run.run_id,
                bundle=run.fab_hash,
                finished=run.status.status == _FINISHED,
                outcome=run.status.sub_status,
                details=run.status.details,
            )
            for run in runs
            if run.fab_hash == bundle
        )

    def stop_run(self, number: int) -> None:
        """End a run; what its checkpoints hold stays.

        Raises:
            ProtocolError: The SuperLink does not answer.
        """
        self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=number)))

    def _ask(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                raise SuperLinkSilentError(f"the SuperLink at {self._address} fails") from error
            raise ProtocolError(
                f"the SuperLink at {self._address} refuses: {error.response.text[:300]}"
            ) from error
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise SuperLinkSilentError(
                f"the SuperLink at {self._address} does not answer ({error}); start it with "
                "'fedhash-coordinator run'"
            ) from error


def bundle_hash(app: Path) -> str:
    """SHA-256 of the bundle of an app folder, 64 hex digits: the same for the same files."""
    return hashlib.sha256(_bundle(app)).hexdigest()


def _bundle(app: Path) -> bytes:
    with warnings.catch_warnings():
        # Flower 1.41 names patterns of ignored files in a way that its library advises against
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_disk(app)


def _pem(site: EnrolledSite) -> bytes:
    try:
        key = load_ssh_public_key(site.supernode_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"sites/{site.name}/supernode.pub holds no key ({error}); restore it from a copy, or "
            "write the one of the site's request.json there"
        ) from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
