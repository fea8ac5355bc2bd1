"""Certificates name one peer, prove it, and nothing that is almost one passes."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from consortium_certificates import Consortium, Credentials
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from fedhash.enrolment import Authority, Role, check_certificate, peer_of
from fedhash.enrolment.certificates import serial_number
from fedhash.enrolment.signing_request import new_request
from fedhash.errors import CertificateError, ConfigurationError, StorageError

NOW = datetime.now(UTC)
AUTHORITY = Authority.generate("thorax")
CA = AUTHORITY.certificate_pem
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)


def certificate(uri: str, authority: Authority = AUTHORITY) -> bytes:
    """A certificate by our authority that names `uri`, made without the checks of `issue`."""
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority._certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(each) for each in uri.split()]
            ),
            critical=False,
        )
        .sign(authority._key, SHA256())
        .public_bytes(Encoding.PEM)
    )


@given(NAMES, NAMES)
@example("a", "00000000000000000000000000000" + "𐀀" * 9)  # 65 bytes in fewer than 64 characters
def test_any_name_comes_back(consortium: str, name: str) -> None:
    authority = Authority.generate(consortium)
    request = new_request(ec.generate_private_key(ec.SECP256R1()))
    peer = check_certificate(authority.sign(request, name), authority.certificate_pem, NOW)
    assert (peer.consortium, peer.role, peer.name) == (consortium, "site", name)
    assert len(peer.fingerprint) == 64


@pytest.mark.parametrize("role", ["site", "coordinator", "gateway", "superlink", "router"])
def test_every_role_is_checked_by_its_use(role: Role) -> None:
    hosts = [] if role in {"site", "coordinator"} else ["10.0.0.7", "c.example.org"]
    _, issued = AUTHORITY.issue(role, "x", hosts=hosts)
    assert check_certificate(issued, CA, NOW).role == role
    other = [] if hosts else ["c.example.org"]
    with pytest.raises(CertificateError, match="of its machine"):
        AUTHORITY.issue(role, "x", hosts=other)


def test_each_certificate_has_a_fingerprint_of_its_own() -> None:
    first, second = (AUTHORITY.issue("site", "a")[1] for _ in range(2))
    assert peer_of(first).fingerprint != peer_of(second).fingerprint
    assert serial_number(first) != serial_number(second)


@pytest.mark.parametrize(
    ("start", "days", "message"),
    [(-3, 1, "site a expired on .* ask the coordinator"), (3, 1, "valid from .* clock")],
)
def test_dates_bind(start: int, days: int, message: str) -> None:
    _, issued = AUTHORITY.issue("site", "a", days=days, now=NOW + timedelta(days=start))
    with pytest.raises(CertificateError, match=message):
        check_certificate(issued, CA, NOW)


def test_no_certificate_outlives_its_authority() -> None:
    authority = Authority.generate("thorax", now=NOW - timedelta(days=3649))
    _, issued = authority.issue("site", "a")
    check_certificate(issued, authority.certificate_pem, NOW)
    with pytest.raises(CertificateError, match="of the authority expired"):
        check_certificate(issued, authority.certificate_pem, NOW + timedelta(days=2))
    assert x509.load_pem_x509_certificate(issued).not_valid_after_utc < NOW + timedelta(days=2)


def test_another_authority_and_another_consortium_are_refused() -> None:
    _, issued = Authority.generate("thorax").issue("site", "a")
    with pytest.raises(CertificateError, match="not issued by this authority"):
        check_certificate(issued, CA, NOW)
    other = Authority.generate("abdomen")
    _, issued = other.issue("site", "a")
    with pytest.raises(CertificateError, match="consortium 'abdomen'"):
        check_certificate(issued, CA, NOW)


def test_a_member_cannot_be_an_authority() -> None:
    key, issued = AUTHORITY.issue("site", "a")
    member = x509.load_pem_x509_certificate(issued)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = load_pem_private_key(key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    forged = certificate("fedhash://thorax/site/b", Authority("thorax", signer, member))
    with pytest.raises(CertificateError, match="not issued by this authority"):
        check_certificate(forged, CA, NOW)
    with pytest.raises(CertificateError, match="URI"):
        check_certificate(forged, issued, NOW)


def test_a_certificate_without_its_use_is_refused() -> None:
    bare = certificate("fedhash://thorax/site/a")
    assert peer_of(bare).name == "a"
    with pytest.raises(CertificateError, match="not for this use"):
        check_certificate(bare, CA, NOW + timedelta(minutes=1))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://thorax/site/a",
        "fedhash://thorax/site/a fedhash://thorax/site/b",
        "fedhash://thorax/site",
        "fedhash://thorax/site/a/b",
        "fedhash://thorax/site/",
        "fedhash:///site/a",
        "fedhash://thorax/site/%61",  # a second spelling of "a"
        "fedhash://thorax/site/%c3%bc",  # lower-case digits: a second spelling of "ü"
        "fedhash://thorax/site/%FF",
        "fedhash://thorax/site/a%0A",
        "fedhash://thorax/site/" + 201 * "a",
        "fedhash://thorax/admin/a",
    ],
)
def test_a_uri_that_is_not_in_form_names_nobody(uri: str) -> None:
    with pytest.raises(CertificateError):
        peer_of(certificate(uri))


@pytest.mark.parametrize(
    "pem",
    [b"", b"x", CA + CA, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_what_is_not_one_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(CertificateError, match="not one certificate"):
        peer_of(pem)


def test_only_a_proven_p256_key_is_signed() -> None:
    request = new_request(ec.generate_private_key(ec.SECP256R1()))
    der = x509.load_pem_x509_csr(request).public_bytes(Encoding.DER)
    broken = der[:-1] + bytes([der[-1] ^ 1])
    forged = x509.load_der_x509_csr(broken).public_bytes(Encoding.PEM)
    with pytest.raises(CertificateError, match="not signed by its own key"):
        AUTHORITY.sign(forged, "a")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    edwards = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    for pem in (
        new_request(ec.generate_private_key(ec.SECP384R1())),
        edwards.public_bytes(Encoding.PEM),
    ):
        with pytest.raises(CertificateError, match="P-256"):
            AUTHORITY.sign(pem, "a")
    with pytest.raises(CertificateError, match="no certificate request"):
        AUTHORITY.sign(b"-----BEGIN", "a")


@pytest.mark.parametrize("host", ["", "a b", "a;return", "*.example.org", "ünicode"])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    with pytest.raises(CertificateError, match="neither a host name nor"):
        AUTHORITY.issue("gateway", "g", hosts=[host])


def test_an_authority_is_kept_from_others_and_never_overwritten(tmp_path: Path) -> None:
    key, pem = tmp_path / "ca.key", tmp_path / "ca.pem"
    AUTHORITY.save(key, pem)
    assert key.stat().st_mode & 0o777 == 0o600
    loaded = Authority.load(key, pem)
    assert (loaded.consortium, loaded.certificate_pem) == ("thorax", CA)
    assert check_certificate(loaded.issue("site", "a")[1], CA, NOW).name == "a"
    other = Authority.generate("other")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        other.save(key, pem)
    pem.write_bytes(other.certificate_pem)
    with pytest.raises(CertificateError, match="not the key of"):
        Authority.load(key, pem)
    key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Authority.load(key, pem)
    key.write_bytes(b"short")
    key.chmod(0o600)
    with pytest.raises(CertificateError, match="restore it from a copy"):
        Authority.load(key, pem)
    with pytest.raises(StorageError):
        Authority.load(tmp_path / "none", pem)


def test_openssl_agrees(tmp_path: Path) -> None:
    """A TLS server of Python's own OpenSSL takes a site and no foreign or expired one."""
    consortium, foreign = Consortium(tmp_path / "a"), Consortium(tmp_path / "b")
    server = consortium.server("gateway")
    assert shakes_hands(server, consortium.site("s"))
    assert not shakes_hands(server, foreign.site("s"))
    assert not shakes_hands(server, consortium.site("s", expired=True))
    assert not shakes_hands(server, consortium.issue("router", "r"))  # a server is no client


def shakes_hands(server: Credentials, client: Credentials) -> bool:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server.certificate, server.key)
    ours.load_verify_locations(server.ca)
    ours.verify_mode = ssl.CERT_REQUIRED
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.load_cert_chain(client.certificate, client.key)
    theirs.load_verify_locations(server.ca)
    left, right = socket.socketpair()
    with left, right:
        for each in (left, right):
            each.settimeout(10)

        def serve() -> None:
            try:
                with ours.wrap_socket(left, server_side=True) as end:
                    end.sendall(b"x")
            except ssl.SSLError:
                left.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with theirs.wrap_socket(right, server_hostname="localhost") as end:
                return end.recv(1) == b"x"
        except (ssl.SSLError, ConnectionError):
            return False
        finally:
            thread.join()
