"""What every key, session and digest is bound to, by the standard library's own HMAC."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from secure_sites import CheatingCoordinator, with_header

from fedhash.errors import RefusedError
from fedhash.learning.loss import Margins
from fedhash.rounds.messages import Message
from fedhash.secagg.asked import digests
from fedhash.secagg.key_agreement import (
    exchange,
    fingerprint,
    pair_mask_key,
    seal,
    self_mask_key,
    unseal,
)
from fedhash.secagg.messages import MaskRequest
from fedhash.secagg.roster import KeyRoster, RoundKeys
from fedhash.secagg.round_secrets import mask_sign

SESSION, ASKED, SECRET = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
PROTOCOL = "fedhash secure aggregation 1"
ONE, OTHER = X25519PrivateKey.generate(), X25519PrivateKey.generate()
PUBLIC_ONE, PUBLIC_OTHER = (key.public_key().public_bytes_raw() for key in (ONE, OTHER))


def text_of(*parts: object) -> bytes:
    return json.dumps(parts, separators=(",", ":")).encode()


def derived(secret: bytes, *parts: str) -> bytes:
    """HKDF-SHA256 (RFC 5869), one block, without salt."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, text_of(PROTOCOL, *parts) + b"\x01", "sha256")


def test_the_key_of_a_pairs_mask() -> None:
    secret = ONE.exchange(OTHER.public_key())
    expected = derived(secret, "pair mask", SESSION.hex(), ASKED.hex(), "a", "b")
    assert pair_mask_key(ONE, PUBLIC_OTHER, SESSION, ASKED, "a", "b") == expected
    assert pair_mask_key(OTHER, PUBLIC_ONE, SESSION, ASKED, "b", "a") == expected
    assert {mask_sign("a", "b"), mask_sign("b", "a")} == {1, -1}


def test_the_key_of_a_sites_own_mask() -> None:
    expected = derived(SECRET, "self mask", SESSION.hex(), "a")
    assert self_mask_key(SECRET, SESSION, "a") == expected


def test_shares_are_sealed_for_one_direction_in_one_session() -> None:
    sealed = seal(b"shares", SECRET, SESSION, "a", "b")
    assert unseal(sealed, SECRET, SESSION, "a", "b") == b"shares"
    key = derived(SECRET, "shares", SESSION.hex(), "a", "b")
    about = text_of(PROTOCOL, "shares", SESSION.hex(), "a", "b")
    assert ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], about) == b"shares"
    assert unseal(sealed, SECRET, SESSION, "b", "a") is None
    assert unseal(sealed, SECRET, ASKED, "a", "b") is None
    assert unseal(sealed, ASKED, SESSION, "a", "b") is None
    assert seal(b"shares", SECRET, SESSION, "a", "b") != sealed  # another nonce


def test_the_fingerprint_of_a_vector() -> None:
    content = np.arange(100, dtype=np.uint8)
    key = derived(SESSION, "fingerprint", SESSION.hex(), ASKED.hex(), "a")
    expected = AESGCM(key).encrypt(bytes(12), b"", content.tobytes())
    assert fingerprint(content, SESSION, ASKED, "a").tobytes() == expected


def test_a_public_key_of_low_order() -> None:
    with pytest.raises(RefusedError, match="low order"):
        exchange(ONE, bytes(32))


def test_what_a_site_signs() -> None:
    expected = text_of(PROTOCOL, "run-1", 7, "a", "0102")
    assert RoundKeys.signed_text("run-1", 7, "a", b"\x01\x02") == expected


def test_what_a_session_is() -> None:
    roster = KeyRoster(
        ("a", "b"),
        1,
        1,
        np.arange(128, dtype=np.uint8).reshape(2, 64),
        np.zeros((2, 64), np.uint8),
    )
    text = text_of(PROTOCOL, "run-1", 7, ["a", "b"], bytes(range(128)).hex())
    assert roster.session("run-1", 7) == hashlib.sha256(text).digest()


# The digests of a request to mask


@pytest.fixture
def request_to_mask() -> MaskRequest:
    _, request = CheatingCoordinator().up_to_share()
    return request


@pytest.mark.parametrize(
    "changes",
    [
        {"round_number": 2},
        {"counted": {"site-00": 1}},
        {"model": np.ones(6, np.float32)},
        {"margins": Margins(np.full(2, 0.3, np.float32), np.ones(2, np.float32))},
        {"margins": Margins(np.full(2, 0.2, np.float32), np.full(2, 2.0, np.float32))},
    ],
    ids=str,
)
def test_another_task_has_both_digests_anew(
    request_to_mask: MaskRequest, changes: dict[str, object]
) -> None:
    before = digests(request_to_mask.to_message())
    train = replace(request_to_mask.train, **changes)
    after = digests(replace(request_to_mask, train=train).to_message())
    assert after.task != before.task
    assert after.asked != before.asked


def test_every_setting_of_the_plan_is_part_of_the_task(request_to_mask: MaskRequest) -> None:
    before = request_to_mask.to_message()
    plan = before.header["train"]["plan"]
    changes = [{"run_id": "run-2"}, {"sites": plan["sites"][:3]}]
    changes += [{"settings": {**plan["settings"], name: "other"}} for name in plan["settings"]]
    assert len(changes) > 8
    for change in changes:
        train = {**before.header["train"], "plan": {**plan, **change}}
        after = digests(with_header(before, train=train))
        assert after.task != digests(before).task
        assert after.asked != digests(before).asked


def test_the_control_variate_is_part_of_the_task(request_to_mask: MaskRequest) -> None:
    message = request_to_mask.to_message()
    more = replace(message, arrays={**message.arrays, "control": np.zeros(6, np.float32)})
    assert digests(more).task != digests(message).task


@pytest.mark.parametrize(
    "change",
    [
        lambda m: with_header(m, session="0" * 64),
        lambda m: with_header(m, encoding_digest="0" * 64),
        lambda m: with_header(m, sharers=m.header["sharers"][:4]),
        lambda m: with_header(m, train={**m.header["train"], "cohort": ["site-00"]}),
        lambda m: replace(m, arrays={**m.arrays, "sealed": m.arrays["sealed"] + 1}),
    ],
)
def test_who_is_asked_and_how_changes_what_is_asked_and_not_the_task(
    request_to_mask: MaskRequest, change: object
) -> None:
    before = request_to_mask.to_message()
    after = change(before)
    assert isinstance(after, Message)
    assert digests(after).task == digests(before).task
    assert digests(after).asked != digests(before).asked
    assert digests(before) == digests(request_to_mask.to_message())
