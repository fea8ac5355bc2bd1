"""The Flower app bundle that starts a run: configuration only, and how anyone can tell.

A bundle that carried code would run before the wheel that a site has installed, so a site takes
nothing but an allow-list of names and one reference to its own wheel. It reads none of the files:
what a run may do, each request says, and the site's own rules judge it.

    >>> check_bundle(content)        # raises BundleError, or the bundle is harmless
"""

from __future__ import annotations

import io
import tomllib
import zipfile
from typing import Any

from fedhash.errors import BundleError

__all__ = [
    "AGREEMENT_NAME",
    "BUNDLE_NAMES",
    "METADATA_NAME",
    "ROUND_NAME",
    "RUN_NAME",
    "SERVER_COMPONENT",
    "SITE_COMPONENT",
    "check_bundle",
]

METADATA_NAME = "pyproject.toml"
AGREEMENT_NAME = "configs/agreement.yaml"
ROUND_NAME = "configs/round.yaml"
RUN_NAME = "configs/run.yaml"

# All that a bundle may hold; Flower adds the first two.
BUNDLE_NAMES = frozenset({METADATA_NAME, ".info/CONTENT", AGREEMENT_NAME, ROUND_NAME, RUN_NAME})

SERVER_COMPONENT = "fedhash_server.flower:app"
SITE_COMPONENT = "fedhash_client.flower:app"

_LARGEST_BUNDLE_BYTES = 10 << 20  # Flower's own bound
_LARGEST_METADATA_BYTES = 1 << 16


def check_bundle(content: bytes) -> None:
    """Refuse a bundle that is anything but fedhash's own configuration.

    Raises:
        BundleError: It holds another name or one twice, names another component, or is no bundle.
    """
    if len(content) > _LARGEST_BUNDLE_BYTES:
        raise BundleError(f"the app bundle has {len(content)} bytes, a configuration has a few kB")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_names([entry.filename for entry in entries])
            metadata = archive.getinfo(METADATA_NAME)
            if metadata.file_size > _LARGEST_METADATA_BYTES:
                raise BundleError(f"its {METADATA_NAME} is larger than {_LARGEST_METADATA_BYTES}")
            with archive.open(metadata) as file:
                about = tomllib.loads(file.read(_LARGEST_METADATA_BYTES + 1).decode())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or compressed in a way that this Python does not know
        raise BundleError(f"the app bundle cannot be read ({type(error).__name__})") from error
    except RecursionError as error:
        raise BundleError(f"its {METADATA_NAME} is nested too deeply") from error
    _check_components(about)


def _check_names(names: list[str]) -> None:
    if strange := sorted({name for name in names if name not in BUNDLE_NAMES}):
        shown = ", ".join(repr(name[:100]) for name in strange[:5])
        raise BundleError(
            f"the app bundle holds {shown}; this site takes configuration only, in files of the "
            "names that fedhash-coordinator writes, and never code"
        )
    if len(names) != len(set(names)):
        raise BundleError("the app bundle holds one name twice")


def _check_components(about: dict[str, Any]) -> None:
    found: Any = about
    for key in ("tool", "flwr", "app", "components"):
        found = found.get(key) if isinstance(found, dict) else None
    expected = {"serverapp": SERVER_COMPONENT, "clientapp": SITE_COMPONENT}
    if found != expected:
        raise BundleError(
            f"the app bundle names the components {str(found)[:200]}, this site runs "
            f"{SITE_COMPONENT!r} alone"
        )
