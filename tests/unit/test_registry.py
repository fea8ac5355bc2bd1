"""Signed statements of what is current, the folder that keeps them, and a site's memory of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_cut import PowerCut, cut_power_at
from small_releases import AGREEMENT, KEY, registry_in, release_into

from fedhash.audit_log import AuditLog
from fedhash.errors import AuditError, ReleaseError
from fedhash.registry import load_release
from fedhash.registry.registry import Registry, read_current
from fedhash.registry.seen import NewestSeen
from fedhash.registry.statement import Statement, read_statement, signed
from fedhash.rounds.messages import canonical_json
from fedhash.secagg.identity import SiteIdentity

STATEMENT = Statement(
    consortium=AGREEMENT.name,
    number=7,
    kind="release",
    release_id="ab" * 32,
    issued="2026-01-02T03:04:05Z",
)


def read(data: bytes, consortium: str = AGREEMENT.name) -> Statement:
    return read_statement(data, KEY.public_hex, consortium)


def numbered(number: int, **changes: str) -> Statement:
    return STATEMENT.model_copy(update={"number": number} | changes)


def test_a_statement_comes_back_and_one_statement_has_one_form() -> None:
    assert read(signed(STATEMENT, KEY)) == STATEMENT
    assert signed(STATEMENT, KEY) == signed(STATEMENT, KEY)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_it_can_be_changed(place: int, bit: int) -> None:
    data = bytearray(signed(STATEMENT, KEY))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ReleaseError):
        read(bytes(data))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_statement(data: bytes) -> None:
    with pytest.raises(ReleaseError, match="no release statement"):
        read(data)


def test_a_signature_of_another_kind_consortium_or_key_is_refused() -> None:
    about = STATEMENT.model_dump(mode="json")
    bare = KEY.sign(canonical_json(about).encode()).hex()  # without saying what it is for
    with pytest.raises(ReleaseError, match="not signed with the agreement's release_key"):
        read(canonical_json({"signature": bare, "statement": about}).encode())
    with pytest.raises(ReleaseError, match="of the consortium 'small consortium'"):
        read(signed(STATEMENT, KEY), consortium="another")
    with pytest.raises(ReleaseError, match="not signed"):
        read(signed(STATEMENT, SiteIdentity.generate()))
    with pytest.raises(ReleaseError, match="at most"):
        read(b" " * 20_000 + signed(STATEMENT, KEY))
    with pytest.raises(ReleaseError, match="canonical form"):
        read(signed(STATEMENT, KEY) + b"\n")


def test_a_site_goes_forward_only(tmp_path: Path) -> None:
    path = tmp_path / "releases" / "newest.json"
    seen = NewestSeen(path)
    assert seen.number == 0
    seen.accept(numbered(7))
    seen.accept(numbered(7))  # told again
    seen = NewestSeen(path)  # after a restart
    assert seen.number == 7
    with pytest.raises(ReleaseError, match="takes none below number 7"):
        seen.accept(numbered(6, release_id="cd" * 32))
    with pytest.raises(ReleaseError, match="two different statements"):
        seen.accept(numbered(7, release_id="cd" * 32))
    seen.accept(numbered(9, kind="rollback", release_id="cd" * 32))
    assert NewestSeen(path).number == 9


def test_a_lost_memory_takes_what_the_operator_allows(tmp_path: Path) -> None:
    path = tmp_path / "newest.json"
    NewestSeen(path).accept(numbered(7))
    path.unlink()
    with pytest.raises(ReleaseError, match="none below number 7"):
        NewestSeen(path, smallest_number=7).accept(numbered(6))
    NewestSeen(path, smallest_number=7).accept(numbered(7))
    path.write_bytes(b"{")
    with pytest.raises(ReleaseError, match=r"set releases\.smallest_number"):
        NewestSeen(path)


def test_a_number_that_was_not_stored_was_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for operation in range(1, 4):
        path = tmp_path / f"{operation}.json"
        seen = NewestSeen(path)
        for _ in cut_power_at(monkeypatch, operation):
            with pytest.raises(PowerCut):
                seen.accept(numbered(7))
        assert seen.number == 0
        assert NewestSeen(path).number in {0, 7}


def test_releases_become_current_and_are_rolled_back_by_new_statements(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    first, second = (release_into(tmp_path, seed).release_id for seed in (1, 2))
    assert registry.current() is None
    assert registry.publish(first).number == 1
    with pytest.raises(ReleaseError, match="was never current"):
        registry.roll_back(second)
    assert registry.publish(second).number == 2
    with pytest.raises(ReleaseError, match="is current already, by statement 2"):
        registry.publish(second)
    back = registry.roll_back(first)
    assert (back.number, back.kind, back.release_id) == (3, "rollback", first)
    assert read(read_current(tmp_path) or b"") == back == registry.current()
    assert [each.release_id for each in registry.statements()] == [first, second, first]


def test_what_sites_would_refuse_is_not_published(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    with pytest.raises(ReleaseError, match="holds no release"):
        registry.publish("ab" * 32)
    with pytest.raises(ReleaseError, match="holds no release"):
        registry.publish("../elsewhere")
    release = release_into(tmp_path, 1)
    (tmp_path / release.release_id).rename(tmp_path / ("cd" * 32))
    with pytest.raises(ReleaseError, match="somebody moved it"):
        registry.publish("cd" * 32)
    other = AGREEMENT.model_copy(update={"findings": AGREEMENT.findings[::-1]})
    stranger = release_into(tmp_path, 1, agreement=other)
    with pytest.raises(ReleaseError, match="under another agreement"):
        registry.publish(stranger.release_id)
    with pytest.raises(ReleaseError, match="sites would refuse what it signs"):
        Registry(tmp_path, AGREEMENT, SiteIdentity.generate())
    assert read_current(tmp_path) is None


def test_two_commands_at_once_and_an_altered_history_are_refused(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    release = release_into(tmp_path, 1)
    with (
        AuditLog(tmp_path / "statements.jsonl"),
        pytest.raises(AuditError, match="another process"),
    ):
        registry.publish(release.release_id)
    registry.publish(release.release_id)
    path = tmp_path / "statements.jsonl"
    path.write_bytes(path.read_bytes().replace(b"small", b"large"))
    with pytest.raises(AuditError, match="altered"):
        registry.publish(release_into(tmp_path, 2).release_id)


@pytest.mark.parametrize("operation", range(1, 13))
def test_a_power_cut_leaves_a_valid_registry_and_gives_no_number_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    registry = registry_in(tmp_path)
    first = release_into(tmp_path, 1).release_id
    registry.publish(first)
    given = [read_current(tmp_path)]
    cut = False
    for _ in cut_power_at(monkeypatch, operation):
        try:
            registry.publish(release_into(tmp_path, 2).release_id)
        except PowerCut:
            cut = True
    assert cut == (operation < 12), "the test reaches the last step"
    registry = registry_in(tmp_path)
    current = registry.current()
    assert current is not None
    assert load_release(tmp_path / current.release_id).release_id == current.release_id
    given.append(read_current(tmp_path))
    second = release_into(tmp_path, 2).release_id  # the same command again
    if current.release_id != second:
        registry.publish(second)
    given.append(read_current(tmp_path))
    numbers = {json.loads(data or b"")["statement"]["number"]: data for data in given}
    assert len(numbers) == len(set(given)), "a number stands for one statement"
    assert sorted(numbers) == [
        json.loads(data or b"")["statement"]["number"] for data in dict.fromkeys(given)
    ]


def test_a_restored_folder_goes_on_above_what_sites_have_seen(tmp_path: Path) -> None:
    release = release_into(tmp_path, 1)
    assert registry_in(tmp_path).publish(release.release_id, after=41).number == 42
    (tmp_path / "statements.jsonl").unlink()
    assert registry_in(tmp_path).publish(release_into(tmp_path, 2).release_id).number == 43
