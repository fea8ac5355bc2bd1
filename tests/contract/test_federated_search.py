"""From an example to all sites' hits, by the commands that people type."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedhash.audit_log import AuditLog
from fedhash.errors import RefusedError
from fedhash.index import Archive
from fedhash.learning.loss import Margins
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.registry import save_release
from fedhash.search.answers import Merged, SiteResult
from fedhash.search.describing import explain
from fedhash_client.cli import app as site_app
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.merged_table import print_merged
from fedhash_client.queries_in_daemon import add_queries
from fedhash_server.cli import app as coordinator_app
from fedhash_server.coordinator_search import search_identity
from tests.router_network import Place, RouterThread
from tests.search_consortium import BITS, SITES, agreement, identity

REPORTS = ("Large effusion.", "Clear lungs.", "Edema of both lungs.", "Effusion, small.")
TERMS = agreement(modalities=("report",), smallest_cohort=2)
MODEL = ModelSettings(
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 64, "character_features": 64, "hidden": 4},
        )
    }
)


def call(app: object, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else " ".join(result.stderr.split())


def site_file(place: Place, site: str, port: int) -> Path:
    """The file of a site with a manifest of its own."""
    own = place.path / site
    rows = [
        f"{site}-{number},p{number},{report},edema,yes" for number, report in enumerate(REPORTS)
    ]
    (own / "manifest.csv").write_text(
        "study_id,patient_id,report,positive,consent\n"
        + "\n".join(row.replace(",Effusion, small.", ',"Effusion, small."') for row in rows)
    )
    network = place.network(site, port)
    lines = [
        f"name: {site}",
        f"agreement: {place.folder.agreement_file}",
        "manifest: manifest.csv",
        "archive: archive.sqlite",
        "handle_key: handle.key",
        "state: state",
        "smallest_kappa: -1.0",
        "queries: {purposes: [care, research], smallest_bucket: 2}",
        "network:",
        *(f"  {name}: {value}" for name, value in network.model_dump(mode="json").items()),
    ]
    path = own / "site.yaml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Path, RouterThread]]:
    """A consortium whose sites a and b are attached; hospital-c is not."""
    place = Place(tmp_path_factory.mktemp("federated"), TERMS)
    model = build_model(MODEL, BITS, seed=3)
    release = save_release(
        place.path / "release",
        agreement=TERMS,
        model_settings=MODEL,
        vector=Layout.of(model).flatten(model),
        margins=Margins(np.full(2, 0.3, np.float32), np.ones(2, np.float32)),
        metrics={},
        run_id="run-1",
    )
    with RouterThread(place.folder) as router, ExitStack() as stack:
        for site in SITES[:2]:
            path = site_file(place, site, router.port)
            call(site_app, "index", path, "--release", place.path / "release")
            archive = stack.enter_context(
                Archive(path.parent / "archive.sqlite", release.release_id, BITS)
            )
            daemon = SiteDaemon(path)
            log = stack.enter_context(AuditLog(daemon.state_folder / "audit.jsonl"))
            stream = add_queries(daemon, log.append, lambda archive=archive: archive)
            assert stream is not None
            assert [each.__qualname__ for each in daemon.forgetting][-1] == "QueryDesk.settle"  # type: ignore[attr-defined]
            stream.start()
            stack.callback(stream.stop)
        site_file(place, "hospital-c", router.port)
        for _ in range(200):
            if len([s for s in router.server.queries.attached() if s.release]) == 2:
                break
            time.sleep(0.05)
        settings = place.folder.settings_file
        settings.write_text(
            settings.read_text()
            .replace("port: 9444", f"port: {router.port}")
            .replace("listen: 0.0.0.0, port: 9443", "listen: 127.0.0.1, port: 9443")
        )
        yield place, place.path / "release", router


def search(place: Place, release: Path, *more: object, code: int = 0) -> str:
    path = place.path / "hospital-c" / "site.yaml"
    return call(site_app, "search", path, "--release", release, *more, code=code)


def test_a_site_finds_the_others_studies(network: tuple[Place, Path, RouterThread]) -> None:
    place, release, _ = network
    asked = ("--report", "Large effusion.", "--federated", "--purpose", "care", "-k", 6)
    found = json.loads(search(place, release, *asked, "--json"))
    assert found["partial"] is True, "hospital-c itself is not attached"
    assert {each["site"]: each["outcome"] for each in found["sites"]} == {
        "hospital-a": "answered",
        "hospital-b": "answered",
        "hospital-c": "not_attached",
    }
    assert [hit["distance"] for hit in found["hits"][:2]] == [0, 0]
    assert {hit["site"] for hit in found["hits"][:2]} == {"hospital-a", "hospital-b"}
    ranks = [(h["distance"], -h["score"], h["site"], h["handle"]) for h in found["hits"]]
    assert ranks == sorted(ranks)
    assert found["sites"][0]["cut_to_bits"] == 8
    text = search(place, release, *asked)
    assert "partial: 1 of 3 missing" in text
    assert "missing: it is not connected" in text


def test_a_purpose_is_needed_and_must_be_agreed_upon(
    network: tuple[Place, Path, RouterThread],
) -> None:
    place, release, _ = network
    example = ("--report", "Edema.")
    assert "--purpose go together" in search(place, release, *example, "--federated", code=1)
    refused = search(place, release, *example, "--federated", "--purpose", "sale", code=1)
    assert "the router refuses the query: the agreement knows no purpose 'sale'" in refused
    refused = search(place, release, *example, "--federated", "--purpose", "research", code=1)
    assert "does not let 'hospital-c' ask for 'research'" in refused


def test_what_a_site_refuses_is_shown(network: tuple[Place, Path, RouterThread]) -> None:
    place, release, _ = network
    asked = ("--report", "Edema.", "--where", "sex=f", "--federated", "--purpose", "care")
    found = json.loads(search(place, release, *asked, "--json"))
    assert found["hits"] == []
    assert [each["hits"] for each in found["sites"]] == [0, 0, 0]


def test_without_a_network_nobody_can_be_asked(network: tuple[Place, Path, RouterThread]) -> None:
    place, release, _ = network
    path = place.path / "hospital-c" / "alone.yaml"
    whole = (place.path / "hospital-c" / "site.yaml").read_text()
    path.write_text(whole[: whole.index("network:")] + "training: {aggregations: [plain]}")
    asked = ("--report", "Edema.", "--federated", "--purpose", "care")
    message = call(site_app, "search", path, "--release", release, *asked, code=1)
    assert "no section network" in message
    daemon = SiteDaemon(path)
    with AuditLog(place.path / "unused.jsonl") as log:
        assert add_queries(daemon, log.append, lambda: None) is None


def test_a_coordinator_asks_by_its_own_key(network: tuple[Place, Path, RouterThread]) -> None:
    place, release, _ = network
    folder, example = place.folder, ("--release", release, "--report", "Large effusion.")
    research = ("--purpose", "research")
    refused = call(coordinator_app, "search", folder.path, *research, *example, code=1)
    assert "does not let this coordinator ask" in refused
    assert search_identity(folder).public_hex in refused.replace(" ", "")
    folder.key("search").unlink()
    identity("coordinator").save(folder.key("search"))
    wanted = ("search", folder.path, *research, "--json")
    found = json.loads(call(coordinator_app, *wanted, *example))
    assert [hit["distance"] for hit in found["hits"][:2]] == [0, 0]
    denied = call(coordinator_app, "search", folder.path, "--purpose", "care", *example, code=1)
    assert "does not let 'coordinator' ask for 'care'" in denied
    code = place.path / "code.json"
    release_id = json.loads((release / "manifest.json").read_text())["release_id"]
    code.write_text(json.dumps({"release": release_id, "code": "00ff"}))
    by_code = call(
        coordinator_app, "search", folder.path, *research, "--code", code, "--target", "report"
    )
    assert "partial: yes" in by_code
    assert by_code.count("hospital-a  ") >= 1
    lacking = call(coordinator_app, "search", folder.path, *research, "--code", code, code=1)
    assert "give --target" in lacking


def test_the_audit_log_of_a_site_tells_who_asked(
    network: tuple[Place, Path, RouterThread],
) -> None:
    place, release, _ = network
    search(place, release, "--report", "Edema.", "--federated", "--purpose", "care")
    text = (place.path / "hospital-a" / "state" / "audit.jsonl").read_text()
    last = json.loads(text.splitlines()[-1])["content"]
    assert (last["requester"], last["purpose"]) == ("hospital-c", "care")
    assert "Edema" not in text


def test_an_agreement_without_search_is_told_when_the_site_starts(tmp_path: Path) -> None:
    place = Place(tmp_path, agreement(modalities=("report",), search=None))
    path = site_file(place, "hospital-a", 1)
    with (
        AuditLog(tmp_path / "audit.jsonl") as log,
        pytest.raises(RefusedError, match="remove the section queries"),
    ):
        add_queries(SiteDaemon(path), log.append, lambda: None)


def test_every_outcome_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(SiteResult("a", "answered", "", 3, 8)) == "3 hits, up to distance 8 only"
    assert explain(SiteResult("a", "refused", "k_above_limit")).endswith("(k_above_limit)")
    assert explain(SiteResult("a", "other_release", "0f" * 32)).endswith("(0f0f0f0f0f0f)")
    assert explain(SiteResult("a", "other_release", "")).endswith("(none yet)")
    print_merged(Merged((), (SiteResult("a", "answered"),)), as_json=False)
    assert "no study within" in capsys.readouterr().out
