"""What a run folder and its report say of rounds that lost sites, or failed."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path

import pytest
from sim_command import run, run_all, study_of

from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.results import read_costs, read_exchanges, read_rounds, read_sums

# A stage and which time it is run, to the sites whose answers are lost. A first round and one after
# a loss begin with `advertise` and `share`; the third round fails before its `unmask`.
LOST = {
    ("mask", 2): ("site-1",),
    ("share", 2): ("site-1",),  # the third round
    ("mask", 3): ("site-2", "site-4"),
    ("unmask", 3): ("site-3",),  # the fourth round
}


class LossyEngine(InProcessEngine):
    """Loses the answers that `LOST` names."""

    def __init__(self, agents: Sequence[SiteAgent]) -> None:
        super().__init__(agents)
        self._times: Counter[str] = Counter()

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Iterator[Answer]:
        self._times[stage] += 1
        lost = LOST.get((stage, self._times[stage]), ())
        for answer in super().ask(stage, requests, timeout_s):
            if answer.site in lost:
                late = SiteFailure("late", f"<{stage}> took longer than a cup of tea")
                yield Answer(answer.site, late, 1.0, answer.request_bytes)
            else:
                yield answer


@pytest.fixture(scope="module")
def troubled(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rounds of five sites, all but the first with losses, the third one failed."""
    out = tmp_path_factory.mktemp("troubled") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedhash_sim.federation.InProcessEngine", LossyEngine)
        study = study_of(finished_once / "run")
        run_all(study, out, "--set", "data.sites=5", "--set", "seeds=[0]")
    return out


@pytest.fixture
def altered(troubled: Path, tmp_path: Path) -> Path:
    """A copy to be altered."""
    return shutil.copytree(troubled, tmp_path / "run")


def section(run_folder: Path, title: str) -> str:
    page = (run_folder / "report.html").read_text()
    (found,) = re.findall(rf"<section>\s*<h2>{title}</h2>(.*?)</section>", page, re.DOTALL)
    return str(found)


def cells(html: str) -> list[tuple[str, ...]]:
    """The rows of all tables in a piece of the page."""
    return [
        tuple(unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row))
        for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    ]


def test_a_failed_secure_round_keeps_what_was_known_of_it(troubled: Path) -> None:
    sums = read_sums(troubled).set_index("round")
    assert list(sums.index) == [1, 2, 3, 4]
    assert list(sums["failure"] != "") == [False, False, True, False]
    assert "2 of 5 sites sent a masked vector" in sums["failure"][3]
    assert list(sums["shared"]) == ["5", "5", "4", "5"]
    assert list(sums["survived"]) == ["5", "4", "2", "5"]
    assert set(sums["graph"]) == {"complete"}
    known = [True, True, False, True]
    assert list(sums["clipped_values"].notna()) == list(sums["rounding_sd"].notna()) == known
    assert (sums["rounding_sd"].dropna() > 0).all()


def test_the_report_names_failed_rounds_with_their_reason(troubled: Path) -> None:
    failed = section(troubled, "Failed rounds")
    assert "1 of 28 rounds failed" in failed  # five sites' own, the consortium's, the central one's
    assert "federated, seed 0, model of consortium, round 3: 2 of 5 sites without fault" in failed
    assert read_sums(troubled).set_index("round")["failure"][3] in unescape(failed)


def test_the_costs_of_a_model_are_the_sums_over_its_rounds(troubled: Path) -> None:
    costs, exchanges, rounds = read_costs(troubled), read_exchanges(troubled), read_rounds(troubled)
    assert len(costs) == 5 + 1 + 1
    for row in costs.itertuples():
        asked = exchanges.query("method == @row.method and model_of == @row.model_of")
        assert row.requests == len(asked)
        assert row.request_bytes == asked["request_bytes"].sum()
        assert row.reply_bytes == asked["reply_bytes"].sum()
        told = rounds.query("method == @row.method and model_of == @row.model_of")
        assert row.rounds * row.site_count == len(told)
        seconds = told.groupby("round")["seconds"].first().sum()
        assert row.round_seconds == pytest.approx(seconds, abs=1e-3)
        assert row.planned_steps == 2 * row.site_count  # local_steps of the round file
    federated = costs.set_index("method").loc["federated"]
    assert federated["failed_rounds"] == 1
    assert federated["evaluations"] == 2
    assert federated["evaluation_seconds"] > 0
    header, *rows = cells(section(troubled, "What training costs"))
    failed = {row[0]: dict(zip(header, row, strict=True))["failed"] for row in rows}
    assert failed == {"local": "0", "federated": "1", "central": "0"}


def test_the_report_says_who_was_in_and_who_dropped_where(troubled: Path) -> None:
    took_part = section(troubled, "Who took part")
    assert "4 times a site was left out" in took_part
    header, *rows = cells(took_part.split("</table>")[0])
    by_site = {row[:2]: dict(zip(header, row, strict=True)) for row in rows}
    assert len(by_site) == 5 + 5 + 1
    first = by_site["site-1", "federated"]
    assert rows[0] == tuple(first.values())  # the site with the most losses
    assert first == {
        "site": "site-1",
        "method": "federated",
        "rounds": "4",
        "counted": "2",
        "with a note": "0",
        "in vain": "0",
        "left out": "2",
        "at stage": "mask 1, share 1",
        "reason": "late: <mask> took longer than a cup of tea",
    }
    assert by_site["site-3", "federated"]["with a note"] == "1"
    assert by_site["site-3", "federated"]["in vain"] == "1"
    assert by_site["site-0", "federated"]["counted"] == "3"
    assert by_site["central", "central"]["counted"] == "4"
    rounds = read_rounds(troubled)
    lost = rounds[rounds["status"] != "ok"]
    assert Counter(lost["site"]) == {"site-1": 2, "site-2": 1, "site-4": 1}
    for status in lost["status"]:
        assert status in unescape(took_part)
    assert "<mask>" not in took_part, "names and reasons are text, no markup"
    assert ("federated", "0", "4", "site-3", rounds["note"].max()) in cells(took_part)


def test_the_report_has_the_cost_of_each_stage_at_each_site(troubled: Path) -> None:
    cost = section(troubled, "What a stage costs")
    exchanges = read_exchanges(troubled)
    mask = exchanges[(exchanges["stage"] == "mask") & (exchanges["reply_bytes"] > 0)]
    of_site = mask[mask["site"] == "site-2"]
    assert len(of_site) == 3
    (row,) = (row for row in cells(cost) if row[0] == "site-2" and len(row) == 1 + 4 * 3)
    assert row[7:10] == (
        f"{of_site['request_bytes'].mean() / 1e3:,.1f}",
        f"{of_site['reply_bytes'].mean() / 1e3:,.1f}",
        f"{of_site['seconds'].mean():.3f}",
    )
    assert ("federated", "mask", "19", "16") in [row[:4] for row in cells(cost)]


def test_the_report_tells_the_kinds_of_secure_rounds(troubled: Path) -> None:
    header, *rows = cells(section(troubled, "Secure aggregation"))
    kinds = [dict(zip(header, row, strict=True)) for row in rows]
    assert [kind["survived"] for kind in kinds] == ["5", "4", "2"]
    assert [kind["rounds"] for kind in kinds] == ["2", "1", "1"]
    assert [kind["failed"] for kind in kinds] == ["0", "0", "1"]
    assert kinds[2]["rounding sd"] == kinds[2]["clipped values"] == "-"
    largest = read_sums(troubled)["rounding_sd"][[0, 3]].max()
    assert kinds[0]["rounding sd"] == f"{largest:.1e}"
    assert {kind["fewest honest"] for kind in kinds} == set(read_sums(troubled)["fewest_honest"])


def test_a_site_that_nobody_reached_was_not_asked(altered: Path) -> None:
    table = altered / "rounds.csv"
    table.write_text(re.sub(",share: late:[^,]*,", ",not reachable,", table.read_text()))
    run("report", altered)
    assert "mask 1, not asked 1" in section(altered, "Who took part")


def test_the_sums_of_an_earlier_version_are_told(altered: Path) -> None:
    table = altered / "sums.csv"
    table.write_text(table.read_text().replace(",failure,", ",", 1))
    assert f"{table} is damaged or of another version" in run("report", altered, ok=False)


def test_a_run_without_trouble_says_so(finished: Path) -> None:
    assert "None: all 20 rounds were completed." in section(finished, "Failed rounds")
    assert "No site was left out of any round." in section(finished, "Who took part")
