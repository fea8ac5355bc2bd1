"""The identity key of a site: real files, their rights, and what is refused."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import ConfigurationError, RefusedError, StorageError
from fedhash.secagg.identity import SiteIdentity, verify_signature

# RFC 8032, section 7.1, test 2
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC_HEX = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
IDENTITY = SiteIdentity.from_seed(SEED)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def private_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_published_vector():
    assert IDENTITY.public_hex == PUBLIC_HEX
    assert IDENTITY.sign(b"\x72") == SIGNATURE
    verify_signature(PUBLIC_HEX, SIGNATURE, b"\x72")


@given(st.binary(max_size=200), st.integers(min_value=0), st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused(message, place, bit):
    signed = bytearray(IDENTITY.sign(message) + message)
    signed[place % len(signed)] ^= 1 << bit
    with pytest.raises(RefusedError, match=f"not that of the identity {PUBLIC_HEX}") as caught:
        verify_signature(PUBLIC_HEX, bytes(signed[:64]), bytes(signed[64:]))
    assert caught.value.reason == "bad_signature"


@pytest.mark.parametrize("signature", [b"", SIGNATURE[:63], SIGNATURE + b"\0"])
def test_a_signature_of_another_length_is_refused(signature):
    with pytest.raises(RefusedError) as caught:
        verify_signature(PUBLIC_HEX, signature, b"\x72")
    assert caught.value.reason == "bad_signature"


def test_the_signature_of_another_site_is_refused():
    other = SiteIdentity.generate()
    assert other.public_hex != SiteIdentity.generate().public_hex
    verify_signature(other.public_hex, other.sign(b"keys"), b"keys")
    with pytest.raises(RefusedError):
        verify_signature(PUBLIC_HEX, other.sign(b"keys"), b"keys")


@pytest.mark.parametrize("public_hex", ["", "hospital", PUBLIC_HEX[:-2], PUBLIC_HEX + "00"])
def test_a_roster_entry_that_is_no_key_is_refused(public_hex):
    with pytest.raises(RefusedError, match="no Ed25519 public key of 64 hex digits") as caught:
        verify_signature(public_hex, SIGNATURE, b"\x72")
    assert caught.value.reason == "bad_identity"


def test_a_seed_has_32_bytes():
    with pytest.raises(ValueError, match="32"):
        SiteIdentity.from_seed(b"short")


def test_a_saved_identity_is_the_same_when_loaded(tmp_path):
    path = tmp_path / "identity.pem"
    identity = SiteIdentity.generate()
    before = os.umask(0)  # the mode does not lean on a careful umask
    try:
        identity.save(path)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]
    assert SiteIdentity.load(path).public_hex == identity.public_hex
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert isinstance(load_pem_private_key(path.read_bytes(), None), Ed25519PrivateKey)


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.pem"
    IDENTITY.save(path)
    with pytest.raises(ConfigurationError, match=rf"{re.escape(str(path))}: there is a file alr"):
        SiteIdentity.generate().save(path)
    assert SiteIdentity.load(path).public_hex == PUBLIC_HEX
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]


def test_a_dangling_link_is_not_written_through(tmp_path):
    path = tmp_path / "identity.pem"
    path.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ConfigurationError, match="there is a file already"):
        IDENTITY.save(path)
    assert not (tmp_path / "elsewhere.pem").exists()


KILLED = """
import os, sys
from pathlib import Path
from fedhash.secagg.identity import SiteIdentity
os.{step} = lambda *_: os._exit(9)
SiteIdentity.generate().save(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_process_that_dies_while_saving_leaves_no_part_of_a_key(tmp_path, step):
    path = tmp_path / "identity.pem"
    script = KILLED.format(step=step)
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == 9
    assert not path.exists()
    assert all(mode(left) == 0o600 for left in tmp_path.iterdir())
    IDENTITY.save(path)
    assert SiteIdentity.load(path).public_hex == PUBLIC_HEX


@pytest.mark.parametrize("rights", [0o640, 0o604, 0o620, 0o610, 0o644, 0o777])
def test_a_key_that_others_may_use_is_refused(tmp_path, rights):
    path = tmp_path / "identity.pem"
    IDENTITY.save(path)
    path.chmod(rights)
    message = rf"identity\.pem: others may use .*mode {rights:04o}, expected 0600.*chmod 600"
    with pytest.raises(ConfigurationError, match=message):
        SiteIdentity.load(path)
    path.chmod(0o400)
    assert SiteIdentity.load(path).public_hex == PUBLIC_HEX


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "whole.pem"
    IDENTITY.save(path)
    whole = path.read_bytes()
    line = whole.split(b"\n")[1]
    for number, content in enumerate(
        [
            b"",
            b"\xff\xfe",
            whole[:60],
            whole.replace(line, line[:-4]),
            whole.replace(b"PRIV", b"PUB"),
        ]
    ):
        damaged = private_file(tmp_path / f"{number}.pem", content)
        with pytest.raises(ConfigurationError, match=rf"{number}\.pem: this is no whole, unencr"):
            SiteIdentity.load(damaged)


def test_an_encrypted_key_is_refused(tmp_path):
    content = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    with pytest.raises(ConfigurationError, match="no whole, unencrypted PEM private key"):
        SiteIdentity.load(private_file(tmp_path / "identity.pem", content))


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ConfigurationError, match="RSAPrivateKey, expected an Ed25519 key"):
        SiteIdentity.load(private_file(tmp_path / "identity.pem", content))


def test_files_that_the_operating_system_refuses(tmp_path):
    with pytest.raises(StorageError, match=r"absent\.pem cannot be used \(No such file"):
        SiteIdentity.load(tmp_path / "absent.pem")
    with pytest.raises(StorageError, match="Is a directory"):
        SiteIdentity.load(tmp_path)
    with pytest.raises(StorageError, match="No such file or directory"):
        IDENTITY.save(tmp_path / "absent" / "identity.pem")


def test_the_key_does_not_show_in_a_traceback():
    assert SEED.hex() not in repr(IDENTITY)
    assert repr(SEED)[2:-1] not in repr(vars(IDENTITY))
