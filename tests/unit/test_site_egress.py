"""`check --show-egress` tells every message and field that the code can send, and no other."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.supernode import fleet_http_client
from google.protobuf.descriptor import Descriptor
from typer.testing import CliRunner

import fedhash.secagg.messages as secagg_messages
from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.registry.wire import releases_pb2
from fedhash.rounds import training_messages
from fedhash.rounds.training_messages import Refusal, TrainReply
from fedhash.search.answers import Found
from fedhash.search.hit import Hit
from fedhash.search.wire import search_pb2
from fedhash.search.wire.answers import encode_answer
from fedhash.secagg.messages import KeysReply, MaskedReply, SharesReply, UnmaskedReply
from fedhash.secagg.roster import RoundKeys, SealedShares
from fedhash_client.cli import app
from fedhash_client.egress import meanings
from fedhash_client.egress.report import (
    FLOWER_CALLS,
    PLAIN_REPLIES,
    PROTOBUF_SENT,
    SECURE_REPLIES,
    Egress,
    egress_of,
)
from fedhash_client.egress.wire_fields import NOT_DESCRIBED
from fedhash_client.settings import SiteSettings
from fedhash_server.gateway import FLEET_METHODS

ROOT = Path(__file__).parents[2]
SITE = ROOT / "configs" / "site" / "example.yaml"
PARAMETERS, FINDINGS = 1000, 14
NAMES = tuple(f"{number:03}" + "é" * 197 for number in range(255))
# what comes from the coordinator and goes to it in nothing
RECEIVED = {"AdvertiseRequest", "ShareRequest", "MaskRequest", "UnmaskRequest", "TrainRequest"}
PROTOBUF_RECEIVED = (
    search_pb2.ToSite,
    search_pb2.Reply,
    releases_pb2.CurrentReply,
    releases_pb2.Chunk,
)


def egress(**changes: object) -> Egress:
    settings = read_settings(SITE, SiteSettings)
    training = settings.training.model_copy(
        update={"aggregations": ("secure", "plain"), "largest_model_parameters": PARAMETERS}
    )
    agreement = read_settings(ROOT / "configs" / "agreement" / "phantom.yaml", Agreement)
    agreement = agreement.model_copy(update={"release_key": "00" * 32})
    return egress_of(settings.model_copy(update={"training": training} | changes), agreement)


def largest_replies() -> list[KeysReply | SharesReply | MaskedReply | UnmaskedReply | TrainReply]:
    def some(*shape: int) -> np.ndarray:
        return np.full(shape, 255, np.uint8)

    head = ("r" * 64, 10**9)
    keys = RoundKeys(some(64), some(64))
    shares = SealedShares(some(255, 92), some(255, 2, 32), some(32))
    numbers = 2 * PARAMETERS + 4 * FINDINGS + 3
    return [
        KeysReply(*head, keys),
        SharesReply(*head, "f" * 64, shares),
        MaskedReply(*head, "f" * 64, some(4 * numbers), some(16), keys),
        UnmaskedReply(*head, "f" * 64, NAMES, some(255, 32), shares, "é" * 500),
        TrainReply(*head, np.ones(numbers - 2, np.float32), 3.0),
    ]


@pytest.mark.parametrize("reply", largest_replies(), ids=lambda each: type(each).__name__)
def test_a_reply_has_exactly_the_fields_that_are_told_and_is_no_longer(
    reply: KeysReply | TrainReply,
) -> None:
    message = reply.to_message()
    (told,) = [each for each in egress().messages if each.name == f"reply: {type(reply).__name__}"]
    assert {field.name for field in told.fields} == {*message.header, *message.arrays}
    size = len(message.encode())
    assert size <= told.largest_bytes < size + 250_000


def test_a_refusal_is_told_as_it_is() -> None:
    message = Refusal("r" * 64, "é" * 500).to_message()
    (told,) = [each for each in egress().messages if each.name == "reply: Refusal"]
    assert {field.name for field in told.fields} == set(message.header)
    assert len(message.encode()) <= told.largest_bytes


def test_every_message_of_a_round_is_sent_and_told_or_received() -> None:
    messages = {
        name
        for module in (secagg_messages, training_messages)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and hasattr(kind, "to_message")
    }
    sent = {kind.__name__ for kind in (*SECURE_REPLIES, *PLAIN_REPLIES, Refusal)}
    assert messages == sent | RECEIVED


def test_every_block_of_a_vector_is_told() -> None:
    source = inspect.getsource(training_messages.reply_blocks)
    assert set(re.findall(r'"(\w+)"\]? ?[:=]', source)) == set(meanings.ALL_BLOCKS)


def reached(roots: tuple[type, ...]) -> set[str]:
    found: list[Descriptor] = [root.DESCRIPTOR for root in roots]  # type: ignore[attr-defined]
    for each in found:
        inner = (field.message_type for field in each.fields if field.message_type is not None)
        found += [part for part in inner if part not in found]
    return {each.full_name for each in found}


def test_every_message_of_the_router_is_sent_and_told_or_received() -> None:
    files = (search_pb2.DESCRIPTOR, releases_pb2.DESCRIPTOR)
    every = {each.full_name for file in files for each in file.message_types_by_name.values()}
    assert every == reached(PROTOBUF_SENT) | reached(PROTOBUF_RECEIVED)


def test_every_field_is_described_and_nothing_else_is() -> None:
    messages = egress().messages
    fields = [field for message in messages for field in message.fields]
    assert [field.name for field in fields if field.meaning == NOT_DESCRIBED] == []
    told = {field.name for field in fields}
    described = {
        *meanings.QUERIES,
        *meanings.RELEASES,
        *meanings.FLOWER,
        *(name for each in meanings.ROUND_REPLIES.values() for name in each),
    }
    assert described == told, "words about fields that are no more"


def test_the_calls_of_flower_are_those_of_its_client_and_of_the_gateway() -> None:
    source = inspect.getsource(fleet_http_client)
    calls = dict(
        re.findall(r"request: (\w+)[^@]*?path=\"/v1/fleet/([a-z-]+)\"", source, flags=re.DOTALL)
    )
    by_path = {path: name for name, path in calls.items()}
    told = {path: kind.__name__ for path, kind in FLOWER_CALLS.items()}
    assert told == {path: by_path[path] for path in FLEET_METHODS}


def test_an_answer_is_no_longer_than_is_told() -> None:
    (told,) = [each for each in egress().messages if each.name == "answer: FromSite"]
    hits = tuple(Hit("hospital-a", f"{number:032x}", 1024, -(1 << 24)) for number in range(50))
    assert len(encode_answer(1 << 60, Found(hits, 1024))) <= told.largest_bytes


def test_what_the_settings_shut_off_is_not_listed() -> None:
    names = {each.name for each in egress(queries=None).messages}
    assert "answer: FromSite" not in names
    alone = egress(network=None)
    assert (alone.connections, alone.messages) == ((), ())
    assert all("supernode" not in each.lower() for each in alone.listens)


def test_the_command_prints_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.hospital:3128")
    shown = CliRunner().invoke(app, ["check", str(SITE), "--show-egress"])
    assert shown.exit_code == 0, shown.output
    assert "coordinator.example.org:9443" in shown.stdout
    assert "images, reports and signals" in shown.stdout
    assert "TrainReply" not in shown.stdout, "the example takes part in secure rounds alone"
    found = json.loads(
        CliRunner().invoke(app, ["check", str(SITE), "--show-egress", "--json"]).stdout
    )
    assert [each["to"] for each in found["connections"]] == [
        "coordinator.example.org:9443",
        "coordinator.example.org:9444",
    ]
    assert "proxy.hospital:3128" in json.dumps(found["notes"])
    assert "secret" not in json.dumps(found["notes"])
