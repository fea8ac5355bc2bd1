"""A whole consortium on one machine: three hospitals, a coordinator, and what they do together.

Every party is processes of its own with the files that `init` makes, and all is done with the
commands that its people type. Nothing leaves loopback.

1. An authority, three sites enrolled, one agreement.
2. Gateway, SuperLink and query router on one side, a daemon and its SuperNode at each site.
3. Private rounds: secure sums, noise that the sites share, heads over frozen public features.
4. A release, which the sites verify and encode their archives with.
5. A search over all sites, a withdrawal, a site that is killed, which the answer names, and its
   return.

All processes end with the demo, also when it fails or is interrupted. The folder keeps every
party's files and logs.

    >>> run_network_demo(Path("runs/network-demo"), print)
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fedhash.errors import FedhashError
from fedhash.index import site_handle
from fedhash.privacy.accountant import smallest_noise_multiplier
from fedhash_client.archive_index import read_handle_key
from fedhash_sim.parties import Parties, free_ports
from fedhash_sim.run_folder import explained

__all__ = ["NetworkDemo", "run_network_demo"]

SITES = ("hospital-a", "hospital-b", "hospital-c")
_CONSORTIUM = "phantom"  # the agreement's name
_CONFIGS = Path("configs")
_PATIENTS_PER_SITE = 150
_ROUNDS = 6
_DIMENSIONS = 60
_CLIP_NORM, _EPSILON, _DELTA = 0.7, 8.0, 1e-5
_MARKER = "network-demo.json"  # a folder that a demo made, and that the next may replace
_REPORT = "The cardiac silhouette is enlarged. Small left pleural effusion. No pneumothorax."


def run_network_demo(folder: Path, tell: Callable[[str], object]) -> dict[str, object]:
    """Play the whole demo.

    Args:
        folder: Everything goes there; an earlier demo in it is replaced.
        tell: Called with each line of what happens.

    Returns:
        Figures of the run, JSON-able.

    Raises:
        FedhashError: A party could not do its part; the message names its log.
    """
    _clear(folder)
    demo = NetworkDemo(folder.resolve(), tell)
    try:
        demo.enrol()
        demo.start()
        demo.train()
        demo.release()
        demo.search_everywhere()
        demo.withdraw()
        demo.lose_a_site()
        return demo.facts
    finally:
        demo.end()


class NetworkDemo(Parties):
    """The steps, in their order.

    Attributes:
        facts: What was measured.
    """

    def __init__(self, folder: Path, tell: Callable[[str], object]) -> None:
        super().__init__(folder / "logs")
        self._folder = folder
        self._tell = tell
        self._coordinator = folder / "coordinator"
        self._towers: dict[str, Any] = {}
        self._ports = free_ports()
        self.facts: dict[str, object] = {}

    def enrol(self) -> None:
        """Data, keys, certificates, one agreement and each site's file."""
        with explained(self._folder):
            self._logs.mkdir(parents=True)
            (self._folder / _MARKER).write_text("{}\n", encoding="utf-8")
        self._fedhash(
            "sim",
            "phantom",
            self._folder / "data",
            *("--sites", len(SITES) + 1),
            *("--patients-per-site", _PATIENTS_PER_SITE),
        )
        agreement = self._written("agreement.yaml", self._agreement())
        self._fedhash(
            "coordinator",
            "init",
            self._coordinator,
            "--name",
            _CONSORTIUM,
            "--host",
            "localhost",
            "--agreement",
            agreement,
        )
        self._towers = self._freeze(agreement)
        ports = {name: next(self._ports) for name in ("gateway", "router", "health", "superlink")}
        self._change(
            self._coordinator / "coordinator.yaml",
            {
                "gateway": {"listen": "127.0.0.1", "port": ports["gateway"]},
                "router": {
                    "listen": "127.0.0.1",
                    "port": ports["router"],
                    "health_port": ports["health"],
                },
                "superlink": {"port": ports["superlink"]},
            },
        )
        for site in SITES:
            made = self._fedhash(
                "site",
                "init",
                self._folder / site,
                "--name",
                site,
                "--coordinator",
                "localhost",
                "--json",
            )
            done = self._fedhash(
                "coordinator", "enrol", self._coordinator, made["request"], "--json"
            )
            if done["digest"] != made["digest"]:
                raise FedhashError(f"the request of {site} was changed on its way")
        for place, site in enumerate(SITES):
            welcome = self._coordinator / "sites" / site / "welcome"
            with explained(self._folder):
                shutil.copytree(welcome, self._folder / site / "consortium", dirs_exist_ok=True)
            self._change(
                self._site_file(site),
                {
                    "manifest": str(self._data(place) / "manifest.csv"),
                    "privacy": {
                        "epsilon_cap": _EPSILON,
                        "delta": _DELTA,
                        "ledger": "state/privacy.sqlite",
                        "modes": ["distributed"],
                    },
                    "training": {"frozen": {m: str(f) for m, f in self._frozen_files().items()}},
                    "queries": {"purposes": ["care"], "smallest_bucket": 1},
                    "daemon": {
                        "health_port": next(self._ports),
                        "supernode_port": next(self._ports),
                    },
                    "releases": {"poll_s": 1},
                },
                network={
                    "superlink": f"localhost:{ports['gateway']}",
                    "router": f"localhost:{ports['router']}",
                },
            )
        self._tell(f"enrolled {', '.join(SITES)}")

    def start(self) -> None:
        """The coordinator's servers and the sites' daemons; returns when all is attached."""
        self._open("coordinator", "coordinator", "run", self._coordinator)
        self._wait("the coordinator's servers", self._servers_serve)
        for site in SITES:
            self._start_site(site)
        for site in SITES:
            self._wait(f"the daemon of {site}", partial(self._healthy, site))
        self._tell("gateway, SuperLink, router and three daemons run")

    def train(self) -> None:
        """Private rounds over the network."""
        started = time.monotonic()
        round_file = self._written("round.yaml", self._round(self._towers))
        run = self._fedhash(
            *("coordinator", "train", self._coordinator, round_file, "--run", "first", "--json"),
            *(
                argument
                for modality, file in self._frozen_files().items()
                for argument in ("--frozen", f"{modality}={file}")
            ),
        )
        self.facts["seconds of training"] = round(time.monotonic() - started, 1)
        self.facts["rounds"] = run["rounds"]
        spent = [self._fedhash("site", "budget", self._site_file(each), "--json") for each in SITES]
        epsilon = max(cap["spent"]["together"] for each in spent for cap in each["caps"])
        self.facts["epsilon of the site that spent most"] = round(epsilon, 3)
        self._tell(
            f"{_ROUNDS} secure rounds with shared noise: epsilon {epsilon:.2f} at {_DELTA:g}"
        )

    def release(self) -> None:
        """A signed release, and an archive of its codes at every site."""
        started = time.monotonic()
        made = self._fedhash("coordinator", "release", "make", self._coordinator, "first", "--json")
        release = made["release_id"]
        for site in SITES:
            self._wait(f"the index of {site}", partial(self._serves, site, release))
        self.facts["release"] = release
        self.facts["seconds from release to index"] = round(time.monotonic() - started, 1)
        self._tell(f"release {release[:12]} is indexed at all sites")

    def search_everywhere(self) -> None:
        """One report asks for images at all sites."""
        found = self._search()
        self._expect_answers(found, SITES)
        self.facts["hits by site"] = _by_site(found)
        self._tell(f"one report found images at all sites: {_by_site(found)}")

    def withdraw(self) -> None:
        """A patient whose image was found withdraws, and is found no more."""
        site = SITES[0]
        before = self._search()
        mine = [hit["handle"] for hit in before["hits"] if hit["site"] == site]
        patient = self._patient_of_first_hit(site, mine)
        self._fedhash("site", "withdraw", self._site_file(site), patient, "--json")
        after = [hit["handle"] for hit in self._search()["hits"] if hit["site"] == site]
        gone = set(mine) - set(after)
        if not gone:
            raise FedhashError(f"{patient} of {site} withdrew and is still found")
        self._fedhash("site", "audit", self._site_file(site), "--json")
        self.facts["handles gone after the withdrawal"] = len(gone)
        self._tell(f"a patient of {site} withdrew: {len(gone)} handle(s) are found no more")

    def lose_a_site(self) -> None:
        """A daemon is killed and started again."""
        lost = SITES[-1]
        killed = self._running.pop(lost)
        killed.kill()
        killed.wait()
        self._wait("the router to see that a site left", lambda: not self._answered(lost))
        partial = self._search()
        self._expect_answers(partial, SITES[:-1])
        self._tell(f"{lost} was killed: the answer is partial and names it")
        self._start_site(lost)
        self._wait(f"{lost} to come back", lambda: self._answered(lost))
        self._expect_answers(self._search(), SITES)
        self._tell(f"{lost} is back and answers")

    def _freeze(self, agreement: Path) -> dict[str, Any]:
        """Make the frozen features of public patients; the towers that read them."""
        towers = {}
        for modality, file in self._frozen_files().items():
            tower = {"image": "image_hog", "report": "report_ngrams"}[modality]
            made = self._fedhash(
                *("sim", "freeze", modality, "--agreement", agreement),
                *("--manifest", self._data(len(SITES)) / "manifest.csv", "--out", file),
                *("--tower", tower, "--layer", "prepared", "--dimensions", _DIMENSIONS, "--json"),
            )
            options = {"dimensions": _DIMENSIONS, "sha256": made["sha256"]}
            towers[modality] = {"name": f"frozen_{modality}", "options": options}
        return towers

    def _agreement(self) -> dict[str, Any]:
        """The phantom's, with what this consortium adds."""
        with explained(_CONFIGS):
            text = (_CONFIGS / "agreement" / "phantom.yaml").read_text(encoding="utf-8")
        terms: dict[str, Any] = yaml.safe_load(text)
        return terms | {
            "modalities": ["image", "report"],
            "privacy": {"epsilon_cap": _EPSILON, "delta": _DELTA, "modes": ["distributed"]},
            "search": {"purposes": {"care": "all"}},
        }

    def _round(self, towers: Mapping[str, Any]) -> dict[str, Any]:
        """The phantom's frozen heads, under noise that the sites share."""
        with explained(_CONFIGS):
            text = (_CONFIGS / "round" / "phantom_frozen.yaml").read_text(encoding="utf-8")
        settings: dict[str, Any] = yaml.safe_load(text)
        settings["model"]["towers"] = dict(towers)
        settings["learning"]["learning_rate"] = 1.0
        sigma = smallest_noise_multiplier(_EPSILON, _DELTA, steps=_ROUNDS)
        return settings | {
            "rounds": _ROUNDS,
            "aggregation": "secure",
            "weighting": "uniform",
            "privacy": {
                "mode": "distributed",
                "clip_norm": _CLIP_NORM,
                "noise_multiplier": sigma,
                "expected_patients": len(SITES) * _PATIENTS_PER_SITE,
            },
        }

    def _start_site(self, site: str) -> None:
        self._open(site, "site", "run", self._site_file(site))

    def _servers_serve(self) -> bool:
        found = self._asked("coordinator", "status", self._coordinator, "--json")
        servers = found.get("servers", {})
        return bool(servers) and all(each["well"] for each in servers.values())

    def _healthy(self, site: str) -> bool:
        return bool(self._asked("site", "status", self._site_file(site), "--json").get("healthy"))

    def _serves(self, site: str, release: str) -> bool:
        found = self._asked("site", "status", self._site_file(site), "--json")
        follower = found.get("services", {}).get("releases", {})
        return bool(follower.get("release") == release and found["healthy"])

    def _search(self) -> dict[str, Any]:
        return self._fedhash(
            *("site", "search", self._site_file(SITES[0]), "--federated", "--purpose", "care"),
            *("--report", _REPORT, "--target", "image", "-k", 30, "--kappa", -1, "--json"),
        )

    def _answered(self, site: str) -> bool:
        return site in _by_site(self._search())

    def _expect_answers(self, found: Mapping[str, Any], sites: Sequence[str]) -> None:
        answered = sorted(each["site"] for each in found["sites"] if each["outcome"] == "answered")
        if answered != sorted(sites):
            raise FedhashError(
                f"{', '.join(sites)} were to answer, {', '.join(answered) or 'nobody'} did; see "
                f"{self._logs}"
            )

    def _patient_of_first_hit(self, site: str, handles: Sequence[str]) -> str:
        """Who a handle stands for: only the site's own key tells."""
        key = read_handle_key(self._folder / site / "state" / "handle.key")
        manifest = self._data(SITES.index(site)) / "manifest.csv"
        with explained(manifest), manifest.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if site_handle(key, row["study_id"]) in handles:
                    return row["patient_id"]
        raise FedhashError(f"no study of {site} was found, so nobody can withdraw")

    def _data(self, place: int) -> Path:
        """The folder of a site's data; the last one's patients are public."""
        return self._folder / "data" / f"site-{place}"

    def _frozen_files(self) -> dict[str, Path]:
        return {
            modality: self._folder / f"frozen-{modality}.safetensors"
            for modality in ("image", "report")
        }

    def _site_file(self, site: str) -> Path:
        return self._folder / site / "site.yaml"

    def _written(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self._folder / name
        with explained(path):
            path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
        return path

    def _change(
        self, path: Path, changes: Mapping[str, Any], **sections: Mapping[str, Any]
    ) -> None:
        """Set values of a settings file, and single values of its sections."""
        with explained(path):
            content = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
            for section, values in sections.items():
                content[section] = content[section] | values
            path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _by_site(found: Mapping[str, Any]) -> dict[str, int]:
    hits = [hit["site"] for hit in found["hits"]]
    answered = [each["site"] for each in found["sites"] if each["outcome"] == "answered"]
    return {site: hits.count(site) for site in sorted(answered)}


def _clear(folder: Path) -> None:
    with explained(folder):
        if folder.exists() and any(folder.iterdir()):
            if not (folder / _MARKER).is_file():
                raise FedhashError(
                    f"{folder} is not empty and was not made by a demo; name another folder"
                )
            shutil.rmtree(folder)
