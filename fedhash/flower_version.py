"""The one version of Flower that fedhash's adapters were tried with.

What keeps a site's data at the site rests on details of Flower that another version may change:
then the adapters refuse to start.

>>> check_flower_version()
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fedhash.errors import ProtocolError

__all__ = ["check_flower_version"]

_TRIED = "1.41."


def check_flower_version() -> None:
    """Refuse any Flower but the one that was tried.

    Raises:
        ProtocolError: Another one is installed, or none.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith(_TRIED):
        raise ProtocolError(
            f"Flower {found} is installed, and this fedhash works with {_TRIED}* only; install "
            "fedhash again in an environment of its own"
        )
