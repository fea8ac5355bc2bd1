"""What a site's SuperNode starts in the place of Flower's `flwr-clientapp`, once a message.

Flower's own program unpacks the coordinator's app bundle, puts it first on the module path and
imports what it names; a bundle can therefore run anything at the site. Rules:

1. Another version of Flower than the one that was tried is refused before any of it runs.
2. The relay is imported from the site's own wheel before anything of the coordinator is looked at.
3. A bundle is vetted by its names and its component reference (`fedhash.bundle`), and then dropped:
   it is not unpacked, no folder of it reaches the module path, and whatever it names, the relay
   is what answers. A bundle that does not pass is an error reply with the reason.
4. No dependency of an app is installed.

It is started in Python's isolated mode by the script that `fedhash_client.daemon.programs` writes.
"""

from __future__ import annotations

import sys
from typing import Any

from fedhash.bundle import check_bundle
from fedhash.errors import BundleError, ProtocolError
from fedhash.flower_version import check_flower_version

__all__ = ["main"]

_INSTALLATION = "--allow-runtime-dependency-installation"


def main() -> None:
    """Answer one message of the SuperNode that names itself in the arguments."""
    try:
        check_flower_version()
        if any(argument.startswith("--allow") for argument in sys.argv[1:]):
            raise BundleError(f"{_INSTALLATION}: this site installs nothing for anybody")
    except ProtocolError as error:
        sys.stderr.write(f"flwr-clientapp of fedhash: {error}\n")
        raise SystemExit(1) from error
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    from fedhash_client.flower import app as relay

    def vet(content: bytes, **_: Any) -> None:
        check_bundle(content)

    def load_relay(*_: Any, **__: Any) -> Any:
        return lambda *_: relay

    for name, ours in {"install_from_fab": vet, "get_load_client_app_fn": load_relay}.items():
        getattr(run_clientapp, name)  # or this is not the Flower whose names are exchanged here
        setattr(run_clientapp, name, ours)
    sys.argv[0] = "flwr-clientapp"  # Flower reads its own name
    flwr_clientapp()


if __name__ == "__main__":
    main()
