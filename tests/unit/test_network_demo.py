"""The parts of the network demo that need no network; `make network-demo` plays the whole."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import pytest

from fedhash.agreement import Agreement
from fedhash.errors import FedhashError
from fedhash.rounds.settings import RoundSettings, check_round
from fedhash_sim import network_demo, parties
from fedhash_sim.network_demo import NetworkDemo, run_network_demo


@pytest.fixture
def demo(tmp_path: Path) -> NetworkDemo:
    return NetworkDemo(tmp_path, print)


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FedhashError, match="was not made by a demo; name another folder"):
        run_network_demo(tmp_path, print)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_its_round_is_private_and_fits_its_agreement(demo: NetworkDemo) -> None:
    agreement = Agreement.model_validate_json(json.dumps(demo._agreement()))
    tower = {"name": "frozen_image", "options": {"dimensions": 60, "sha256": "ab" * 32}}
    settings = RoundSettings.model_validate_json(json.dumps(demo._round({"image": tower})))
    assert check_round(settings, agreement) == []
    assert settings.privacy.shares_noise
    assert settings.aggregation == "secure"


def test_ports_differ_and_are_free() -> None:
    ports = list(islice(parties.free_ports(), 20))
    assert len(set(ports)) == 20


def test_a_party_that_ends_is_told_with_its_last_words(
    demo: NetworkDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", "raise SystemExit('no manifest')"]
    monkeypatch.setattr(parties, "_command", lambda program: words)
    demo._logs.mkdir()
    demo._open("hospital-a", "site", "run")
    with pytest.raises(FedhashError, match=r"hospital-a has ended; .*no manifest"):
        demo._wait("the daemon", lambda: False)


def test_parties_end_with_the_demo(demo: NetworkDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(parties, "_command", lambda program: forever)
    demo._logs.mkdir()
    for site in network_demo.SITES:
        demo._open(site, "site", "run")
    running = list(demo._running.values())
    assert [party.poll() for party in running] == [None] * 3
    demo.end()
    assert None not in [party.poll() for party in running]
