"""Enrolling a site, replacing its keys, and striking it off.

1. A site is enrolled when `sites/NAME` stands and the agreement has its identity. The folder comes
   into being by one rename, the agreement by another; after a crash between them the same command
   finishes the work. Repeated, it changes nothing. A replaced certificate counts until the new one
   stands in its place, so a site is enrolled at every moment in between.
2. Other keys under a name that is taken are refused without `replace`, and keys of another site
   always. A SuperNode key that was struck off is refused for good, because Flower takes none twice.
3. What is replaced or struck off stands in `struck/`, for the records. From then on no server takes
   the certificate, whatever its dates say. While a site is replaced it is enrolled at every moment:
   a running coordinator that missed it would have Flower refuse its key for good.
4. The agreement lists the identities, so it changes for all sites: each `welcome` folder gets
   the new one, and sites with an older one refuse to work until they have it.

    >>> enrol(folder, read_request(Path("request.json"))).changed
    True
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from fedhash.durability import replace_file, sync_folder
from fedhash.enrolment.request import SiteRequest, read_request
from fedhash.enrolment.signing_request import request_key
from fedhash.errors import CertificateError, StorageError
from fedhash_server.agreement_file import changed_agreement, write_agreement_section
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.roster import EnrolledSite, read_roster

__all__ = ["Enrolment", "enrol", "strike"]


@dataclass(frozen=True)
class Enrolment:
    """What enrolling a site did, or would do.

    Attributes:
        site: Its name.
        changed: Whether anything was not as it should be.
        welcome: Folder to send to the site.
        expires: Last day of its certificate; empty in a dry run of a new one.
        agreement_digest: Of the agreement that all sites now need.
        other_sites: Sites that need the new agreement as well.
    """

    site: str
    changed: bool
    welcome: Path
    expires: str
    agreement_digest: str
    other_sites: tuple[str, ...]


def enrol(
    folder: CoordinatorFolder, request: SiteRequest, *, replace: bool = False, dry_run: bool = False
) -> Enrolment:
    """Enrol a site.

    Args:
        folder: The coordinator's.
        request: The site's; it has been verified.
        replace: Issue a new certificate for a site that is enrolled, also for other keys.
        dry_run: Check everything and change nothing.

    Raises:
        CertificateError: The name is taken, also in other case, or a key is another site's.
        ConfigurationError: The agreement is wrong, or its file cannot be changed.
        StorageError: The operating system refuses.
    """
    with _locked(folder):
        _check_distinct(folder, request)
        place = folder.sites / request.name
        enrolled = read_roster(folder)
        known = request.name in enrolled and _stored_request(place) == request
        _check_not_struck(folder, request, enrolled.get(request.name))
        if request.name in enrolled and not known and not replace:
            raise CertificateError(
                f"{request.name} is enrolled with other keys; if the site confirms that these are "
                f"its new ones (digest {request.digest()}), repeat with --replace"
            )
        agreement = folder.agreement()
        issue = replace or not known
        join = agreement.sites.get(request.name) != request.identity
        sites = agreement.sites | {request.name: request.identity}
        others = tuple(name for name in enrolled if name != request.name) if join else ()
        # before a certificate is signed: the agreement may know no site of that name or key
        meant = changed_agreement(folder.agreement_file, {"sites": sites})
        if dry_run:
            expires = "" if issue else _date(enrolled[request.name])
            return Enrolment(
                request.name, issue or join, place / "welcome", expires, meant.digest(), others
            )
        if issue:
            _issue(folder, request)
        agreement = write_agreement_section(folder.agreement_file, {"sites": sites})
        _write_welcomes(folder)
        return Enrolment(
            site=request.name,
            changed=issue or join,
            welcome=place / "welcome",
            expires=_date(read_roster(folder)[request.name]),
            agreement_digest=agreement.digest(),
            other_sites=others,
        )


def strike(folder: CoordinatorFolder, site: str) -> tuple[str, ...]:
    """Strike a site off: no server takes its certificate any more, no round its identity.

    Returns:
        The sites that are left; each needs the new agreement.

    Raises:
        CertificateError: No such site is enrolled.
        ConfigurationError: The agreement's file cannot be changed.
        StorageError: The operating system refuses.
    """
    with _locked(folder):
        agreement, enrolled = folder.agreement(), read_roster(folder)
        if site not in enrolled and site not in agreement.sites:
            raise CertificateError(
                f"{site!r} is not enrolled; the sites are {', '.join(enrolled) or 'none'}"
            )
        if site in enrolled:
            _put_away(folder, enrolled[site])
        sites = {name: key for name, key in agreement.sites.items() if name != site}
        write_agreement_section(folder.agreement_file, {"sites": sites})
        _write_welcomes(folder)
        return tuple(name for name in enrolled if name != site)


def _check_distinct(folder: CoordinatorFolder, request: SiteRequest) -> None:
    """Refuse another site's name in other case, and its keys: two names would be one party."""
    for place in sorted(folder.sites.iterdir()):
        if place.name != request.name and place.name.casefold() == request.name.casefold():
            raise CertificateError(
                f"{place.name!r} is enrolled, and {request.name!r} differs by upper and lower case "
                "alone; have the site choose another name with 'fedhash-site init'"
            )
    for path in sorted(folder.sites.glob("*/request.json")):
        if path.parent.name == request.name:
            continue
        other = read_request(path)
        keys = request_key(other.certificate_request.encode())
        shared = [
            what
            for what, same in (
                ("TLS key", keys == request_key(request.certificate_request.encode())),
                ("SuperNode key", other.supernode_key == request.supernode_key),
                ("identity", other.identity == request.identity),
            )
            if same
        ]
        if shared:
            raise CertificateError(
                f"the {' and '.join(shared)} of {request.name} is that of {other.name}; each site "
                "makes keys of its own with 'fedhash-site init'"
            )


def _check_not_struck(
    folder: CoordinatorFolder, request: SiteRequest, enrolled: EnrolledSite | None
) -> None:
    if enrolled is not None and enrolled.supernode_key == request.supernode_key:
        return  # its certificate was replaced, the key stays
    for path in sorted(folder.struck.glob("*/request.json")):
        if read_request(path).supernode_key == request.supernode_key:
            raise CertificateError(
                f"the SuperNode key of {request.name} was struck off, and Flower takes no key "
                "again; have the site delete secrets/supernode.key and run 'fedhash-site init' "
                "again for a new request"
            )


def _stored_request(place: Path) -> SiteRequest | None:
    return read_request(place / "request.json") if (place / "request.json").exists() else None


def _issue(folder: CoordinatorFolder, request: SiteRequest) -> None:
    """A certificate, and the site's folder around it."""
    certificate = folder.authority().sign(request.certificate_request.encode(), request.name)
    place = folder.sites / request.name
    unfinished = folder.path / f".enrolling-{request.name}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # what a crash left
        contents = {
            "supernode.pub": f"{request.supernode_key}\n".encode(),
            "welcome/site.pem": certificate,
            "welcome/ca.pem": folder.ca.read_bytes(),
            "certificate.pem": certificate,
            # last: by it the same command knows what is done
            "request.json": (request.model_dump_json(indent=2) + "\n").encode(),
        }
        enrolled = read_roster(folder).get(request.name)
        if enrolled is not None:
            _keep_record(folder, enrolled)
            _write(place, contents)
        else:
            _write(unfinished, contents)
            unfinished.rename(place)
            sync_folder(folder.sites)
    except OSError as error:
        raise StorageError(error, place) from error


def _write(place: Path, contents: dict[str, bytes]) -> None:
    place.mkdir(mode=0o700, exist_ok=True)
    (place / "welcome").mkdir(exist_ok=True)
    for name, content in contents.items():
        replace_file(place / name, content)


def _record(folder: CoordinatorFolder, site: EnrolledSite) -> Path:
    """Where a site's files stay for the records; the serial number is of one certificate alone."""
    folder.struck.mkdir(mode=0o700, exist_ok=True)
    return folder.struck / f"{site.name}-{site.serial}"


def _keep_record(folder: CoordinatorFolder, site: EnrolledSite) -> None:
    """A copy of what is to be replaced; after a crash the whole one that was made before it."""
    record = _record(folder, site)
    if record.exists():
        return
    unfinished = folder.path / f".keeping-{site.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(folder.sites / site.name, unfinished)
    unfinished.rename(record)
    sync_folder(folder.struck)


def _put_away(folder: CoordinatorFolder, site: EnrolledSite) -> None:
    try:
        record = _record(folder, site)
        shutil.rmtree(record, ignore_errors=True)  # a replacing that a crash ended left a copy
        (folder.sites / site.name).rename(record)
        sync_folder(folder.sites)
    except OSError as error:
        raise StorageError(error, folder.struck) from error


def _write_welcomes(folder: CoordinatorFolder) -> None:
    """Give each site's welcome folder the agreement as it now is."""
    try:
        content = folder.agreement_file.read_bytes()
        for welcome in folder.sites.glob("*/welcome"):
            path = welcome / "agreement.yaml"
            if not path.exists() or path.read_bytes() != content:
                replace_file(path, content)
    except OSError as error:
        raise StorageError(error, folder.sites) from error


def _date(site: EnrolledSite) -> str:
    return f"{site.expires:%Y-%m-%d}"


@contextmanager
def _locked(folder: CoordinatorFolder) -> Iterator[None]:
    """One command changes the roster at a time; the system takes the lock back with the process."""
    folder.settings()  # or it is no coordinator's folder
    try:
        with (folder.path / ".enrolment.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            yield
    except OSError as error:
        raise StorageError(error, folder.path) from error
