"""The coordinator asking the sites, where the agreement allows it.

1. The queries are signed by `secrets/search.key` (Ed25519, made at need). The agreement must name
   its public half as `search.coordinator_key`, and a purpose that lists "coordinator".
2. The TLS certificate is made for each call: the coordinator holds the authority.
3. The coordinator has no archive and no studies. It encodes an example with a release, or takes a
   code that somebody else made.

    >>> ask_sites(CoordinatorFolder(Path("thorax")), query, purpose="research").missing
    ()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
from pydantic import Field

from fedhash.configuration import Settings, problem_at, read_settings
from fedhash.errors import ConfigurationError, ProtocolError
from fedhash.search import WEIGHT_SCALE, Query
from fedhash.search.answers import Merged
from fedhash.search.asking import sign_query
from fedhash.search.replies import read_merged
from fedhash.search.terms import COORDINATOR
from fedhash.search.wire.methods import ASK, CHANNEL_OPTIONS, SERVICE
from fedhash.search.wire.queries import encode_signed
from fedhash.secagg.identity import SiteIdentity
from fedhash_server.coordinator_folder import CoordinatorFolder

__all__ = ["CodeFile", "ask_sites", "read_code_file", "search_identity"]

_MARGIN_S = 5.0  # the router replies at the query's deadline; the reply travels
_Weight = Annotated[int, Field(ge=-WEIGHT_SCALE, le=WEIGHT_SCALE)]


class CodeFile(Settings):
    """A code that was made elsewhere.

    Attributes:
        release: The release whose model made it.
        code: The packed code, as hex digits.
        weights: The model's outputs times 4096, one a bit, for the order among equal distances;
            without them it is that of the handles.
    """

    release: str = Field(pattern="^[0-9a-f]{64}$")
    code: str = Field(pattern="^([0-9a-f]{2}){2,32}$")
    weights: tuple[_Weight, ...] | None = None

    def query(self, *, modality: str, k: int, radius: int | None, filters: dict[str, str]) -> Query:
        """The query for studies like it.

        Raises:
            QueryError: The weights are not one a bit, or an argument is out of range.
        """
        code = bytes.fromhex(self.code)
        weights = (0,) * (8 * len(code)) if self.weights is None else self.weights
        made = np.array(weights, dtype=np.int16)
        return Query(self.release, modality, code, made, k, radius, filters)


def search_identity(folder: CoordinatorFolder) -> SiteIdentity:
    """The key that signs the coordinator's queries, made at the first call.

    Raises:
        ConfigurationError: Others may read it, or it is none.
        StorageError: It can be neither made nor read.
    """
    path = folder.key("search")
    if not path.exists():
        SiteIdentity.generate().save(path)
    return SiteIdentity.load(path)


def ask_sites(
    folder: CoordinatorFolder, query: Query, *, purpose: str, timeout_s: float = 10.0
) -> Merged:
    """Ask all sites.

    Args:
        folder: The coordinator's.
        query: What is asked.
        purpose: What the answer is for; a name of the agreement.
        timeout_s: How long sites may take, at most a minute.

    Raises:
        ConfigurationError: The agreement does not name the coordinator's key.
        RefusedError: The agreement or the router forbids the query.
        ProtocolError: The router cannot be reached, or answers of other sites.
        MessageError: A field of the query or the reply is of no valid form.
        CertificateError: The authority's files are damaged.
        StorageError: A file cannot be read.
    """
    settings, agreement = folder.settings(), folder.agreement()
    identity = search_identity(folder)
    terms = agreement.search
    if terms is None or terms.coordinator_key != identity.public_hex:
        message = (
            "the agreement does not let this coordinator ask; have the sites agree on "
            f"search: {{coordinator_key: {identity.public_hex}, purposes: {{...: [coordinator]}}}}"
        )
        raise ConfigurationError([problem_at(folder.agreement_file, (), message)])
    terms.check_purpose(COORDINATOR, purpose)
    signed = sign_query(
        query,
        identity,
        requester=COORDINATOR,
        purpose=purpose,
        agreement=agreement.digest(),
        now_ms=time.time_ns() // 1_000_000,
        life_ms=max(1, round(1000 * timeout_s)),
    )
    authority = folder.authority()
    key, certificate = authority.issue("coordinator", "search", days=1)
    credentials = grpc.ssl_channel_credentials(authority.certificate_pem, key, certificate)
    address = f"{settings.host}:{settings.router.port}"
    with grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        ask: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/{ASK}")
        try:
            data = ask(encode_signed(signed), timeout=timeout_s + _MARGIN_S)
        except grpc.RpcError as error:
            raise ProtocolError(
                f"the router {address} failed ({error.code().name}: {str(error.details())[:500]}); "
                "check that 'fedhash-coordinator run' runs and serves this folder"
            ) from error
    return read_merged(query, signed, agreement.sites, data)


def read_code_file(path: Path) -> CodeFile:
    """The code in a YAML or JSON file.

    Raises:
        ConfigurationError: It is none.
    """
    return read_settings(path, CodeFile)
