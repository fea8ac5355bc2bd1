"""What the daemon answers to frames, without any socket: real studies, real files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_folder import answers_of, make_site
from small_federation import (
    AGREEMENT,
    MODEL,
    SECURE_AGREEMENT,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    run_plan,
    site_agent,
)

from fedhash.agreement import Agreement
from fedhash.errors import ConfigurationError
from fedhash.learning.loss import Margins
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy import read_ledger
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_rounds
from fedhash.rounds.training_messages import Refusal, TrainReply, TrainRequest
from fedhash_client.daemon import training
from fedhash_client.daemon.relay_answers import RelayAnswers
from fedhash_client.withdrawn import Withdrawn
from fedhash_sim.engines.inprocess import InProcessEngine

PLAIN = {"training": {"aggregations": ["plain"]}}
PRIVACY = {"privacy": {"epsilon_cap": 8.0, "delta": 1e-5, "ledger": "state/privacy.sqlite"}}
MAX_BYTES = 100_000_000


class FramedSite:
    """A site behind frames, as an engine in process asks it."""

    def __init__(self, site: str, answers: RelayAnswers) -> None:
        self.site = site
        self.max_message_bytes = answers.max_frame_bytes
        self._answers = answers

    def handle(self, message: Message) -> Message:
        return Message.decode(self._answers.answer(message.encode()), max_bytes=MAX_BYTES)


def train_request(number: int = 1, *, agreement: Agreement = AGREEMENT, **changes: Any) -> Message:
    plan = run_plan(round_settings(learning={"control_variates": False}, **changes))
    plan = plan.model_copy(update={"agreement_digest": agreement.digest()})
    request = TrainRequest(
        plan, number, SITES, {}, model_and_layout()[0], Margins.constant(3, 0.3), None
    )
    return request.to_message()


def asked(answers: RelayAnswers, message: Message, **how: Any) -> Message:
    return Message.decode(answers.answer(message.encode(), **how), max_bytes=MAX_BYTES)


def refusal(reply: Message) -> str:
    return Refusal.from_message(reply).reason


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_site(tmp_path, "site-0", AGREEMENT, **PLAIN)


def test_three_sites_behind_frames_release_the_model_of_the_engine(tmp_path: Path) -> None:
    secure = round_settings(rounds=2, aggregation="secure")
    expected = run_rounds(
        new_coordinator(secure),
        InProcessEngine([site_agent(site, agreement=SECURE_AGREEMENT) for site in SITES]),
    )
    framed: list[Any] = [
        FramedSite(site, answers_of(make_site(tmp_path / site, site))) for site in SITES
    ]
    found = run_rounds(new_coordinator(secure), InProcessEngine(framed))
    np.testing.assert_array_equal(found, expected)


def test_a_restarted_site_goes_on_and_reads_no_study_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure = round_settings(rounds=3, aggregation="secure")
    expected = run_rounds(
        new_coordinator(secure),
        InProcessEngine([site_agent(site, agreement=SECURE_AGREEMENT) for site in SITES]),
    )
    files = {site: make_site(tmp_path / site, site) for site in SITES}
    coordinator = new_coordinator(secure)
    engine = InProcessEngine([FramedSite(s, answers_of(f)) for s, f in files.items()])  # type: ignore[misc]
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    class KilledError(Exception):
        pass

    def kill(record: Any) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run_rounds(coordinator, engine, checkpoints, kill)
    monkeypatch.setattr(training, "prepare_studies", None)  # the disk has them
    resumed = new_coordinator(secure)
    resumed.state = checkpoints.load(resumed.plan) or resumed.state
    assert resumed.state.records
    again = InProcessEngine([FramedSite(s, answers_of(f)) for s, f in files.items()])  # type: ignore[misc]
    np.testing.assert_array_equal(run_rounds(resumed, again), expected)


def test_a_site_of_secure_rounds_gives_no_vector_in_the_clear(tmp_path: Path) -> None:
    answers = answers_of(make_site(tmp_path, "site-0"))
    request = train_request(agreement=SECURE_AGREEMENT)
    assert refusal(asked(answers, request)) == "other_aggregation"
    assert not (tmp_path / "state" / "prepared").exists()


def test_a_site_of_plain_rounds_takes_part_in_no_secure_one(plain: Path) -> None:
    message = Message("advertise", {"run_id": "run-1", "round_number": 1}, {})
    assert refusal(asked(answers_of(plain), message)) == "other_aggregation"


def test_prepared_studies_are_kept_for_their_owner_alone(plain: Path) -> None:
    assert asked(answers_of(plain), train_request()).kind == "train_reply"
    folder = plain.parent / "state" / "prepared"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = list(folder.iterdir())
    assert {path.suffix for path in kept} == {".json", ".safetensors"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_a_damaged_file_of_prepared_studies_is_made_anew(plain: Path) -> None:
    first = asked(answers_of(plain), train_request())
    (stored,) = (plain.parent / "state" / "prepared").glob("*.safetensors")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    again = asked(answers_of(plain), train_request())
    np.testing.assert_array_equal(first.arrays["vector"], again.arrays["vector"])
    assert stored.read_bytes() != bytes(content)


def drop_last_row(manifest: Path) -> None:
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))


def test_an_edited_manifest_counts_from_the_next_round(plain: Path) -> None:
    answers = answers_of(plain)
    before = asked(answers, train_request())
    drop_last_row(plain.parent / "manifest.csv")
    after = asked(answers, train_request(2))
    assert (before.arrays["weight"], after.arrays["weight"]) == (3, 2)


def test_a_report_that_changes_under_its_name_counts_from_the_next_round(plain: Path) -> None:
    folder = plain.parent
    (folder / "film.txt").write_text("Clear lungs.")
    rows = "study_id,patient_id,positive,report\ns1,p1,nodule,@film.txt\ns2,p2,nodule,A nodule.\n"
    (folder / "manifest.csv").write_text(rows)
    answers = answers_of(plain)
    before = asked(answers, train_request()).arrays["vector"]
    (folder / "film.txt").write_text("A large effusion, on the left.")
    after = asked(answers, train_request()).arrays["vector"]
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(  # a daemon that starts now finds the new one
        asked(answers_of(plain), train_request()).arrays["vector"], after
    )


def test_a_withdrawal_prepares_anew(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answers_of(plain)
    asked(answers, train_request())
    read: list[object] = []
    real = training.read_site_manifest

    def noting(*arguments: Any) -> Any:
        read.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(training, "read_site_manifest", noting)
    asked(answers, train_request())
    assert not read
    patients = answers.trainers.patients
    assert patients is not None
    (row, *_) = (plain.parent / "manifest.csv").read_text().splitlines()[1:]
    Withdrawn(plain.parent / "state").begin(row.split(",")[1])
    asked(answers, train_request())
    assert len(read) == 1
    assert answers.trainers.patients == patients - 1
    answers.forget_data()
    assert not list((plain.parent / "state" / "prepared").iterdir())
    assert asked(answers, train_request()).kind == "train_reply"
    assert len(read) == 2


def test_patients_without_consent_do_not_train(plain: Path) -> None:
    manifest = plain.parent / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("patient-0,", "patient-0,", 1))
    text = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([text[0], text[1].replace("yes", "no"), *text[2:]]))
    assert asked(answers_of(plain), train_request()).arrays["weight"] == 2


def test_data_that_cannot_train_is_told_to_the_site_alone(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (plain.parent / "manifest.csv").write_text("study_id,patient_id,positive,report\n")
    reply = Refusal.from_message(asked(answers_of(plain), train_request()))
    assert reply.reason == "not_ready"
    assert "log" in reply.detail
    assert "no usable study" in caplog.text


def test_a_model_above_the_sites_limit_is_refused_before_any_study_is_read(tmp_path: Path) -> None:
    limits = {"training": {"aggregations": ["plain"], "largest_model_parameters": 100}}
    site = make_site(tmp_path, "site-0", AGREEMENT, **limits)
    (tmp_path / "manifest.csv").unlink()
    assert refusal(asked(answers_of(site), train_request())) == "too_large"


def test_more_prepared_studies_than_the_site_has_room_for_are_not_prepared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"training": {"aggregations": ["plain"], "largest_prepared_bytes": 1 << 20}}
    site = make_site(tmp_path, "site-0", AGREEMENT, **limits)
    rows = "".join(f"s{i},p{i},nodule,A nodule.\n" for i in range(5000))
    (tmp_path / "manifest.csv").write_text(f"study_id,patient_id,positive,report\n{rows}")
    assert refusal(asked(answers_of(site), train_request())) == "not_ready"
    assert "largest_prepared_bytes" in caplog.text


@pytest.mark.parametrize(
    "tower",
    [
        TowerSettings(name="report_unknown"),
        TowerSettings(name="report_ngrams", options={"hidden": 10**9}),
        TowerSettings(name="report_ngrams", options={"hidden": 9}),
    ],
)
def test_another_model_than_the_request_says_is_refused(plain: Path, tower: TowerSettings) -> None:
    plan = run_plan(round_settings(learning={"control_variates": False}))
    model = ModelSettings(towers={"report": tower})
    assert model != MODEL
    settings = plan.settings.model_copy(update={"model": model})
    request = TrainRequest(
        plan.model_copy(update={"settings": settings}),
        1,
        SITES,
        {},
        model_and_layout()[0],
        Margins.constant(3, 0.3),
        None,
    )
    assert refusal(asked(answers_of(plain), request.to_message())) == "other_model"
    assert not (plain.parent / "state" / "prepared").exists()


def test_nothing_is_spent_for_a_caller_who_has_hung_up(tmp_path: Path) -> None:
    site = make_site(tmp_path, "site-0", AGREEMENT, **PLAIN, **PRIVACY)
    answers = answers_of(site)
    request = private_request()
    waits = iter([True, False])
    assert refusal(asked(answers, request, still_wanted=lambda: next(waits))) == "abandoned"
    assert refusal(asked(answers, request, still_wanted=lambda: False)) == "abandoned"
    assert not read_ledger(tmp_path / "state" / "privacy.sqlite")
    assert asked(answers, request).kind == "train_reply"  # prepared meanwhile


def private_request(number: int = 1) -> Message:
    privacy = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.5
    )
    plan = run_plan(
        round_settings(
            learning={"control_variates": False},
            weighting="uniform",
            privacy=privacy,
        )
    )
    request = TrainRequest(
        plan, number, SITES, {}, model_and_layout()[0], Margins.constant(3, 0.3), None
    )
    return request.to_message()


def test_private_rounds_stand_in_the_ledger_and_have_new_noise_each_time(tmp_path: Path) -> None:
    answers = answers_of(make_site(tmp_path, "site-0", AGREEMENT, **PLAIN, **PRIVACY))
    first, second = (asked(answers, private_request()).arrays["vector"] for _ in range(2))
    assert not np.array_equal(first, second)
    entries = read_ledger(tmp_path / "state" / "privacy.sqlite")
    assert [(entry.event.run_id, entry.event.round_number) for entry in entries] == [
        ("run-1", 1)
    ] * 2
    assert refusal(asked(answers, train_request())) == "not_private"


def test_a_site_without_a_privacy_section_trains_nothing_private(plain: Path) -> None:
    assert refusal(asked(answers_of(plain), private_request())) == "no_privacy_here"


def test_an_identity_that_the_agreement_does_not_list_is_told_at_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, "site-0")
    content = yaml.safe_load((tmp_path / "agreement.yaml").read_text())
    content["sites"].pop("site-0")
    (tmp_path / "agreement.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError, match="does not list this site"):
        answers_of(site)


def test_a_seed_that_is_no_number_is_told_with_the_remedy(plain: Path) -> None:
    (plain.parent / "state" / "training.seed").write_text("seven")
    with pytest.raises(ConfigurationError, match="remove the file"):
        answers_of(plain)


def test_a_new_site_makes_a_seed_for_its_owner_alone(plain: Path) -> None:
    seed = plain.parent / "state" / "training.seed"
    seed.unlink()
    answers_of(plain)
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    made = seed.read_text()
    answers_of(plain)
    assert seed.read_text() == made


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> RelayAnswers:
    both = {"training": {"aggregations": ["secure", "plain"], "largest_model_parameters": 10_000}}
    return answers_of(make_site(tmp_path_factory.mktemp("site"), "site-0", **both))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_come_the_answer_is_a_message(
    shared_site: RelayAnswers, data: st.DataObject
) -> None:
    frame = bytearray(train_request(agreement=SECURE_AGREEMENT).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame[place] = data.draw(st.integers(0, 255))
    sent = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    reply = Message.decode(shared_site.answer(sent), max_bytes=MAX_BYTES)
    assert reply.kind == "refusal" or TrainReply.from_message(
        reply, TrainRequest.from_message(Message.decode(sent, max_bytes=MAX_BYTES))
    )


def test_a_frame_above_the_limit_is_refused_undecoded(shared_site: RelayAnswers) -> None:
    reply = shared_site.answer(os.urandom(64) + bytes(shared_site.max_frame_bytes))
    found = Refusal.from_message(Message.decode(reply, max_bytes=MAX_BYTES))
    assert found.reason == "bad_message"
    assert "the limit is" in found.detail
