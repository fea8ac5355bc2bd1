"""What `fedhash-coordinator status` tells: servers, sites, runs.

>>> read_status(folder)["servers"]["gateway"]
{'pid': 4711, 'well': True, 'starts': 1}
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from fedhash.enrolment.certificates import expiry
from fedhash.errors import ProtocolError, StorageError
from fedhash_server.coordinator import children_file, children_of
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.roster import read_roster
from fedhash_server.run_progress import read_progress
from fedhash_server.superlink import SuperLink

__all__ = ["read_status"]

_WARNED_BEFORE = timedelta(days=30)


def read_status(folder: CoordinatorFolder, now: datetime | None = None) -> dict[str, Any]:
    """The state of everything, as plain JSON; servers are asked now.

    Raises:
        CertificateError: A site's folder is wrong.
        ConfigurationError: A file is wrong.
        ProtocolError: nginx is not installed, or another Flower is.
        StorageError: The operating system refuses.
    """
    settings, roster = folder.settings(), read_roster(folder)
    now = now or datetime.now(UTC)
    warnings: list[str] = []
    told = _told(folder)
    servers: dict[str, dict[str, Any]] = {}
    for child in children_of(folder, settings):
        known = told.get("children", {}).get(child.name, {"pid": None, "starts": 0})
        well = child.probe()
        servers[child.name] = known | {"well": well}
        if not well:
            warnings.append(f"the {child.name} does not serve")
    if not told:
        warnings.append("nothing runs this folder; start 'fedhash-coordinator run'")
    if told.get("fault"):
        warnings.append(f"the roster cannot be kept: {told['fault']}")
    nodes: dict[str, str] = {}
    if servers["superlink"]["well"]:
        try:
            with SuperLink(folder, settings) as superlink:
                nodes = superlink.nodes()
        except ProtocolError as error:
            warnings.append(str(error))
    sites = {
        name: {
            "node": nodes.get(name, "unknown"),
            "certificate": site.fingerprint,
            "expires": f"{site.expires:%Y-%m-%d}",
        }
        for name, site in roster.items()
    }
    ends = {f"site {name}": site.expires for name, site in roster.items()}
    for role in ("ca", "gateway", "router", "superlink"):
        ends[role] = expiry(folder.certificate(role).read_bytes())
    warnings += [
        f"the certificate of the {name} ends on {end:%Y-%m-%d}; docs/coordinator.md says how to "
        "renew it"
        for name, end in ends.items()
        if end - now < _WARNED_BEFORE
    ]
    agreement = folder.agreement()
    return {
        "consortium": settings.consortium,
        "agreement": agreement.digest(),
        "servers": servers,
        "sites": sites,
        "runs": read_progress(folder),
        "warnings": warnings,
    }


def _told(folder: CoordinatorFolder) -> dict[str, Any]:
    """What the running coordinator wrote last; empty if none runs."""
    path = children_file(folder)
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(OSError(5, str(error)), path) from error
    return told
