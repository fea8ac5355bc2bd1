"""The coordinator's folder: where everything stands, and how a new one is made.

1. A key is made once and never overwritten. A second `init` makes what is missing and nothing else.
2. Keys and the servers' certificates belong to this machine. The authority's key signs everybody:
   who has it can enrol themselves, so keep a copy of it where the network does not reach.

    >>> folder = CoordinatorFolder(Path("thorax"))
    >>> make_coordinator_folder(folder, "thorax", ["c.example.org"])
    >>> folder.settings().gateway.port
    9443
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.durability import replace_file
from fedhash.enrolment import Authority, Role, check_certificate, peer_of
from fedhash.errors import CertificateError, ConfigurationError, Problem, StorageError
from fedhash.private_file import write_private_file
from fedhash.secagg.identity import SiteIdentity
from fedhash_server.agreement_file import write_agreement_section
from fedhash_server.coordinator_settings import CoordinatorSettings

__all__ = ["CoordinatorFolder", "make_coordinator_folder"]

_LOOPBACK = ("localhost", "127.0.0.1")

_SETTINGS = """\
# The coordinator of one consortium. Relative paths start at this file's folder.
consortium: {consortium}
host: {host} # as sites reach this machine

# Sites connect to these two from outside; open them in the firewall, and nothing else.
gateway: {{listen: 0.0.0.0, port: 9443}} # training
router: {{listen: 0.0.0.0, port: 9444, health_port: 9446}} # searches and releases; health: loopback

# Loopback only: it asks local users for no credential.
superlink: {{port: 9445}}

nginx: nginx # the program of the gateway; apt-get install nginx-light
"""

_AGREEMENT = """\
# What all sites sign up to; docs/coordinator.md describes it. 'fedhash-coordinator enrol' adds
# the sites. Change the rest before sites are enrolled: all hold the same copy, or refuse.
name: {consortium}
version: 1
# the label vocabulary: write your own
findings:
  - no_finding
  - cardiomegaly
  - pleural_effusion
  - pneumonia
  - pneumothorax
code_bits: 64
modalities: [image, report]
smallest_cohort: 3
largest_k: 100
privacy: # of everything that leaves a site, for each patient; sites have caps of their own as well
  epsilon_cap: 8.0
  delta: 1.0e-5
  modes: [site]
search: # who may ask for what; each site's own file has limits of its own as well
  purposes: {{care: all}}
"""


@dataclass(frozen=True)
class CoordinatorFolder:
    """Names of the files in the folder `path`."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """The coordinator's own settings."""
        return self.path / "coordinator.yaml"

    @property
    def agreement_file(self) -> Path:
        """The consortium's agreement."""
        return self.path / "agreement.yaml"

    @property
    def ca(self) -> Path:
        """Certificate of the authority."""
        return self.certificate("ca")

    @property
    def sites(self) -> Path:
        """One folder for each enrolled site."""
        return self.path / "sites"

    @property
    def struck(self) -> Path:
        """What was kept of sites and certificates that are no longer enrolled."""
        return self.path / "struck"

    @property
    def runs(self) -> Path:
        """One folder for each training run."""
        return self.path / "runs"

    @property
    def releases(self) -> Path:
        """One folder for each release, and the statements of which is current."""
        return self.path / "releases"

    @property
    def state(self) -> Path:
        """What the servers keep."""
        return self.path / "state"

    @property
    def nginx_file(self) -> Path:
        """Configuration of the gateway, written by `run`."""
        return self.path / "nginx.conf"

    def key(self, name: str) -> Path:
        """The private key of a server, the authority or the releases."""
        return self.path / "secrets" / f"{name}.key"

    def certificate(self, name: str) -> Path:
        """The certificate of a server or the authority."""
        return self.path / "certificates" / f"{name}.pem"

    def settings(self) -> CoordinatorSettings:
        """The coordinator's settings.

        Raises:
            ConfigurationError: The file is wrong or not there.
        """
        if not self.settings_file.is_file():
            message = "this is no coordinator's folder; make one with 'fedhash-coordinator init'"
            raise ConfigurationError([Problem(self.path, None, message)])
        return read_settings(self.settings_file, CoordinatorSettings)

    def agreement(self) -> Agreement:
        """The agreement.

        Raises:
            ConfigurationError: The file is wrong or not there.
        """
        return read_settings(self.agreement_file, Agreement)

    def authority(self) -> Authority:
        """The consortium's authority.

        Raises:
            CertificateError: Its files are damaged or not there.
            ConfigurationError: Others may use its key.
        """
        return Authority.load(self.key("ca"), self.ca)

    def check_servers(self, now: datetime | None = None) -> None:
        """Check the certificates of the servers.

        Raises:
            CertificateError: One is not valid now.
            StorageError: One cannot be read.
        """
        try:
            ca = self.ca.read_bytes()
            for role in ("gateway", "superlink", "router"):
                certificate = self.certificate(role).read_bytes()
                check_certificate(certificate, ca, now or datetime.now(UTC))
        except OSError as error:
            raise StorageError(error, self.path) from error


def make_coordinator_folder(
    folder: CoordinatorFolder,
    consortium: str,
    hosts: Sequence[str],
    agreement: Path | None = None,
) -> tuple[str, ...]:
    """Make what is missing of a coordinator's folder.

    Args:
        folder: Made if need be, for its owner alone.
        consortium: Its name.
        hosts: Host names and addresses under which sites reach this machine, the main one first.
        agreement: An agreement to start from; default: a draft with a vocabulary to replace.

    Returns:
        Names of the files that were made, relative to the folder.

    Raises:
        CertificateError: A name is none, or the folder is that of another consortium.
        ConfigurationError: The agreement is wrong or names another consortium.
        StorageError: The operating system refuses.
    """
    Authority.generate(consortium).issue(
        "gateway", hosts[0], hosts=hosts
    )  # names are checked first
    made: list[str] = []
    try:
        text = _AGREEMENT.format(consortium=_yaml_text(consortium))
        if agreement is not None:
            named = read_settings(agreement, Agreement).name  # tells what is no text as well
            text = agreement.read_text(encoding="utf-8-sig")
            if named != consortium:
                message = f"name is {named!r}, and the consortium {consortium!r}; make them equal"
                raise ConfigurationError([Problem(agreement, None, message)])
        _make_folders(folder)
        _make_keys(folder, consortium, hosts, made)
        settings = _SETTINGS.format(consortium=_yaml_text(consortium), host=_yaml_text(hosts[0]))
        for path, content in ((folder.settings_file, settings), (folder.agreement_file, text)):
            if not path.exists():
                replace_file(path, content.encode())
                made.append(path.name)
    except OSError as error:
        raise StorageError(error, folder.path) from error
    release_key = SiteIdentity.load(folder.key("release")).public_hex
    write_agreement_section(folder.agreement_file, {"release_key": release_key})
    return tuple(made)


def _make_folders(folder: CoordinatorFolder) -> None:
    secrets, certificates = folder.key("ca").parent, folder.ca.parent
    for each in (folder.path, secrets, certificates, folder.sites, folder.runs, folder.state):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)


def _make_keys(
    folder: CoordinatorFolder, consortium: str, hosts: Sequence[str], made: list[str]
) -> None:
    if not folder.key("ca").exists():
        Authority.generate(consortium).save(folder.key("ca"), folder.ca)
        made += ["secrets/ca.key", "certificates/ca.pem"]
    authority = folder.authority()
    if authority.consortium != consortium:
        raise CertificateError(
            f"{folder.path} is the folder of the consortium {authority.consortium!r}; "
            "name another folder"
        )
    servers: tuple[tuple[Role, Sequence[str]], ...] = (
        ("gateway", hosts),
        ("router", hosts),
        ("superlink", _LOOPBACK),
    )
    for role, names in servers:
        if not folder.certificate(role).exists():
            key, certificate = authority.issue(role, names[0], hosts=names)
            folder.key(role).unlink(missing_ok=True)  # a crash left it without its certificate
            write_private_file(folder.key(role), key)
            replace_file(folder.certificate(role), certificate)
            made += [f"secrets/{role}.key", f"certificates/{role}.pem"]
        peer_of(folder.certificate(role).read_bytes())
    if not folder.key("release").exists():
        SiteIdentity.generate().save(folder.key("release"))
        made.append("secrets/release.key")


def _yaml_text(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1000).strip()
