"""The three sites of `small_federation` as folders on the disk, as a daemon finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from small_federation import IDENTITIES, SECURE_AGREEMENT, site_studies

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings, resolved
from fedhash.data.manifest import ManifestRow, write_manifest
from fedhash_client.daemon.relay_answers import RelayAnswers
from fedhash_client.settings import SiteSettings

TRAINING_SEED = 7  # of `small_federation.site_agent`


def make_site(
    folder: Path, site: str, agreement: Agreement = SECURE_AGREEMENT, **sections: Any
) -> Path:
    """A site's folder; returns its site.yaml."""
    (folder / "state").mkdir(mode=0o700, parents=True)
    (folder / "state" / "training.seed").write_text(f"{TRAINING_SEED}\n")
    (folder / "agreement.yaml").write_text(resolved(agreement))
    IDENTITIES[site].save(folder / "identity.pem")
    rows = [
        ManifestRow(
            study.study_id,
            study.patient_id,
            study.positive,
            {"report": str(study.contents["report"].load())},
        )
        for study in site_studies(site)
    ]
    write_manifest(folder / "manifest.csv", rows)
    network = {"superlink": "127.0.0.1:1", "router": "127.0.0.1:1", "identity": "identity.pem"}
    network |= dict.fromkeys(["ca", "certificate", "key", "supernode_key"], "unused")
    content: dict[str, Any] = {
        "name": site,
        "agreement": "agreement.yaml",
        "manifest": "manifest.csv",
        "archive": "state/archive.sqlite",
        "handle_key": "state/handle.key",
        "state": "state",
        "network": network,
    }
    site_file = folder / "site.yaml"
    site_file.write_text(yaml.safe_dump(content | sections))
    return site_file


def answers_of(site_file: Path) -> RelayAnswers:
    settings = read_settings(site_file, SiteSettings)
    agreement = read_settings(settings.agreement, Agreement)
    assert settings.state is not None
    return RelayAnswers.of_site(site_file, settings, agreement, settings.state)
