"""A whole, sound site on the disk, as `fedhash-site init` and an enrolment leave it.

>>> place = CheckedSite.make(tmp_path)
>>> place.change(privacy={"epsilon_cap": 99.0})
>>> place.check()
"""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from fedhash.data.phantom import PhantomSettings, generate_phantom
from fedhash.data.phantom.export import export_phantom
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.cli import app
from fedhash_client.site_folder import make_site_folder
from tests.consortium_certificates import Consortium

ROOT = Path(__file__).parents[1]
SITE = "hospital-a"


@dataclass
class CheckedSite:
    """The folder of a site and the authority that enrolled it."""

    folder: Path
    consortium: Consortium

    @classmethod
    def make(cls, path: Path) -> CheckedSite:
        """A site with five patients."""
        consortium = Consortium(path / "authority", "phantom")
        folder = path / "site"
        request = make_site_folder(folder, SITE, coordinator="localhost").request
        place = cls(folder, consortium)
        shutil.copy(consortium.ca, folder / "consortium" / "ca.pem")
        place.certify(SITE)
        terms = yaml.safe_load((ROOT / "configs" / "agreement" / "phantom.yaml").read_text())
        terms["sites"] = {SITE: request.identity}
        terms["release_key"] = SiteIdentity.from_seed(bytes(32)).public_hex
        terms["privacy"] = {"epsilon_cap": 8.0, "delta": 1e-5}
        place.agreement.write_text(yaml.safe_dump(terms))
        phantom = PhantomSettings(sites=1, patients_per_site=5, image_size_px=32)
        export_phantom(generate_phantom(phantom, seed=1), folder / "data")
        health, supernode = free_ports(2)
        place.change(
            manifest="data/manifest.csv",
            daemon={"health_port": health, "supernode_port": supernode},
        )
        return place

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def agreement(self) -> Path:
        return self.folder / "consortium" / "agreement.yaml"

    @property
    def manifest(self) -> Path:
        return self.folder / "data" / "manifest.csv"

    def certify(self, name: str, *, now: datetime | None = None, days: int = 90) -> None:
        """A certificate of the site's own key."""
        request = json.loads((self.folder / "request.json").read_text())
        pem = self.consortium.authority.sign(
            request["certificate_request"].encode(), name, days=days, now=now
        )
        (self.folder / "consortium" / "site.pem").write_bytes(pem)

    def change(self, path: Path | None = None, **sections: Any) -> None:
        """Change keys of site.yaml, or of another file; None removes one."""
        path = path or self.file
        content = yaml.safe_load(path.read_text())
        for name, value in sections.items():
            if value is None:
                content.pop(name, None)
            elif isinstance(value, dict):
                content[name] = content.get(name, {}) | value
            else:
                content[name] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def line_of(self, text: str) -> int:
        """The line of site.yaml on which `text` stands."""
        lines = self.file.read_text().splitlines()
        return next(number for number, line in enumerate(lines, 1) if text in line)

    def check(self, *options: str) -> list[dict[str, Any]]:
        """What the command tells; its status must fit."""
        result = CliRunner().invoke(app, ["check", str(self.file), "--json", *options])
        problems: list[dict[str, Any]] = json.loads(result.stdout)["problems"]
        errors = any(each["severity"] == "error" for each in problems)
        assert result.exit_code == int(errors), result.output
        return problems


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, each another."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
