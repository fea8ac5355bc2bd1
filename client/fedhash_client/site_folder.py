"""A new site's folder: its keys, the request to the coordinator, and a site's file to fill in.

1. A key is made once. Where one stands already it is used, so the command may be repeated, and a
   second call changes nothing.
2. Keys leave the folder in no form. The request holds the public halves.

    >>> made = make_site_folder(Path("site"), "hospital-a", coordinator="c.example.org")
    >>> made.request.digest()
    '6b1f...'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedhash.durability import replace_file
from fedhash.enrolment.request import SiteRequest, make_request, read_request
from fedhash.enrolment.signing_request import request_key
from fedhash.errors import CertificateError, StorageError
from fedhash.private_file import read_private_file, write_private_file
from fedhash.secagg.identity import SiteIdentity

__all__ = ["MadeSite", "make_site_folder"]

_SITE_FILE = "site.yaml"
_GATEWAY_PORT = 9443
_ROUTER_PORT = 9444

_TEMPLATE = """\
# One site. Relative paths start at this file's folder.
name: {name}

# Comes from the coordinator, with consortium/ca.pem and consortium/site.pem below.
agreement: consortium/agreement.yaml

# The table of the site's studies (CSV or JSONL); docs/site.md lists its columns.
manifest: manifest.csv

archive: state/archive.sqlite
handle_key: state/handle.key # made at first need; makes study handles opaque
state: state # everything that the daemon keeps

# No hit is farther than this allows, whatever a query asks: from -1 (broad) to 1 (the same code).
smallest_kappa: 0.0

# What may leak of one patient, of everything that the site ever releases. Without this section
# nothing private is trained.
privacy:
  epsilon_cap: 8.0
  delta: 1.0e-5 # well below one over the number of patients
  ledger: state/privacy.sqlite
  modes: [site] # add distributed to take part in rounds whose noise the sites share

# What other members may ask, for the purposes of the agreement's section search. Without this
# section the site answers nobody.
queries:
  purposes: [care]
  largest_k: 50
  smallest_bucket: 3 # an answer that rests on fewer patients is empty
  queries_per_hour: 600 # of one requester

# What this site trains, beside the agreement's limits.
training:
  aggregations: [secure] # plain would show the coordinator this site's own update
  largest_model_parameters: 100000000 # bounds memory and the length of messages
  largest_prepared_bytes: 4294967296 # of studies in memory; the disk holds twice as much
  # frozen: {{image: frozen-image.safetensors}} # for rounds with frozen towers

# What the daemon listens on, on loopback alone: whoever is on this machine reaches these ports.
daemon:
  health_port: 9464 # /health and /metrics
  supernode_port: 9465 # of Flower's SuperNode

# The consortium's releases: asked for, verified, and encoded in the background.
releases:
  poll_s: 30
  largest_bytes: 2147483648
  # smallest_number: 7 # after a loss of state/releases/newest.json, see docs/site.md

# Connections go outwards only. Without this section the site works alone.
network:
  superlink: {superlink}
  router: {router}
  ca: consortium/ca.pem
  certificate: consortium/site.pem
  key: secrets/tls.key
  identity: secrets/identity.pem
  supernode_key: secrets/supernode.key
"""


@dataclass(frozen=True)
class MadeSite:
    """What `make_site_folder` made or found.

    Attributes:
        folder: The site's folder.
        request: What to send to the coordinator.
        made: Names of the files that were not there before, relative to the folder.
    """

    folder: Path
    request: SiteRequest
    made: tuple[str, ...]


def make_site_folder(
    folder: Path, name: str, *, coordinator: str = "coordinator.example.org"
) -> MadeSite:
    """Make what is missing of a site's folder.

    Args:
        folder: Made if need be, for its owner alone.
        name: The site's name in the consortium.
        coordinator: Host name or address of the coordinator's machine.

    Raises:
        CertificateError: The name cannot be enrolled, the host is none, a key is damaged, or the
            folder is that of another site.
        ConfigurationError: Others may use a key of the folder.
        StorageError: The operating system refuses.
    """
    # the name is checked before anything is written
    trial = ec.generate_private_key(ec.SECP256R1())
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,200}", coordinator):
        raise CertificateError(
            f"{coordinator[:80]!r} is neither a host name nor an IP address; name the "
            "coordinator's machine, such as coordinator.example.org"
        )
    public = _public_line(ec.generate_private_key(ec.SECP384R1()))
    make_request(name, trial, public, SiteIdentity.generate())
    made: list[str] = []
    request_file = folder / "request.json"
    try:
        for each in (folder, folder / "secrets", folder / "consortium", folder / "state"):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        earlier = read_request(request_file) if request_file.exists() else None
        if earlier is not None and earlier.name != name:
            raise CertificateError(
                f"{folder} is the folder of the site {earlier.name!r}; name another folder"
            )
        tls, supernode, identity = _keys(folder, made)
        request = make_request(name, tls, supernode, identity)
        if earlier is not None and _same_keys(earlier, request, tls):
            request = earlier  # an ECDSA signature differs each time, the request shall not
        else:
            replace_file(request_file, (request.model_dump_json(indent=2) + "\n").encode())
            made.append(request_file.name)
        if not (folder / _SITE_FILE).exists():
            replace_file(folder / _SITE_FILE, _site_file(name, coordinator).encode())
            made.append(_SITE_FILE)
    except OSError as error:
        raise StorageError(error, folder) from error
    return MadeSite(folder, request, tuple(made))


def _keys(folder: Path, made: list[str]) -> tuple[ec.EllipticCurvePrivateKey, str, SiteIdentity]:
    """The TLS key, the SuperNode's public key as a line, and the identity."""
    secrets = folder / "secrets"
    tls_file, supernode_file = secrets / "tls.key", secrets / "supernode.key"
    identity_file = secrets / "identity.pem"
    if not tls_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private_file(tls_file, pem)
        made.append("secrets/tls.key")
    if not supernode_file.exists():
        key = ec.generate_private_key(ec.SECP384R1())  # Flower reads OpenSSH's form
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_private_file(supernode_file, pem)
        made.append("secrets/supernode.key")
    if not identity_file.exists():
        SiteIdentity.generate().save(identity_file)
        made.append("secrets/identity.pem")
    try:
        tls = load_pem_private_key(read_private_file(tls_file), password=None)
        supernode = load_ssh_private_key(read_private_file(supernode_file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"a key in {secrets} is damaged ({error}); restore it from a copy, or move it away and "
            "be enrolled anew"
        ) from error
    if not isinstance(tls, ec.EllipticCurvePrivateKey) or not isinstance(
        supernode, ec.EllipticCurvePrivateKey
    ):
        raise CertificateError(
            f"a key in {secrets} is no ECDSA key; move it away and be enrolled anew"
        )
    return tls, _public_line(supernode), SiteIdentity.load(identity_file)


def _public_line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _same_keys(earlier: SiteRequest, request: SiteRequest, tls: ec.EllipticCurvePrivateKey) -> bool:
    return (
        earlier.supernode_key == request.supernode_key
        and earlier.identity == request.identity
        and request_key(earlier.certificate_request.encode()) == tls.public_key()
    )


def _site_file(name: str, coordinator: str) -> str:
    host = f"[{coordinator}]" if ":" in coordinator else coordinator
    values = {
        "name": name,
        "superlink": f"{host}:{_GATEWAY_PORT}",
        "router": f"{host}:{_ROUTER_PORT}",
    }
    # in quotes, because a name such as "1" or "no" is text, and "[::1]:9443" no list
    quoted = {key: yaml.safe_dump(text, default_style='"').strip() for key, text in values.items()}
    return _TEMPLATE.format(**quoted)
