"""A site's search of its own archive, for its own users: by code, or by words where there is none.

1. By code: the example is encoded by the release that answers, and its archive is searched within
   the agreement's and the site's limits (`fedhash.index.searcher`).
2. By words: over the site's reports (`fedhash.index.keywords`). It is taken where the site has no
   release, or none that can be used, and the example is a report; the answer says so, and why.

    >>> search_own(served, settings, agreement, OwnQuery(modality="report", ...))
    {'source': 'release', 'release': '5a0c...', 'cut_to_bits': None, 'hits': [...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fedhash.agreement import Agreement
from fedhash.configuration import Settings
from fedhash.data.modalities import MODALITIES
from fedhash.errors import QueryError
from fedhash.index import SiteSearcher, check_limits
from fedhash.index.encoding import check_example, encode_example
from fedhash.models.hash_model import HashModel
from fedhash.registry.release import Release
from fedhash.search import Query, make_query, radius_from_kappa
from fedhash_client.keyword_index import open_keywords
from fedhash_client.releases.served import ServedRelease
from fedhash_client.settings import SiteSettings

__all__ = ["OwnQuery", "encoded", "search_own", "search_words"]


class OwnQuery(Settings):
    """What a user of the site asks.

    Attributes:
        modality: Of the example.
        example: The report's text, or the file of an image.
        target: The modality to search in; None: the example's.
        k: Hits wanted.
        kappa: Bounds the radius; None: no bound but the site's.
        filters: Attribute to value.
    """

    modality: str
    example: str
    target: str | None = None
    k: int = Field(default=10, ge=1)
    kappa: float | None = None
    filters: dict[str, str] = Field(default={})

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> OwnQuery:
        """A query that came as JSON.

        Raises:
            QueryError: It is none.
        """
        try:
            return cls.model_validate_json(json.dumps(dict(asked)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise QueryError(
                f"this is no search ({place + ': ' if place else ''}{first['msg']}); "
                "its texts have to be UTF-8"
            ) from error
        except ValueError as error:  # no JSON can be made of it
            raise QueryError(f"this is no search ({error})") from error

    def check(self, agreement: Agreement) -> int | None:
        """Hold it against the agreement; returns the radius that it asks for.

        Raises:
            QueryError: It breaks a limit, or its example is none.
        """
        check_example(self.example)
        if self.modality not in MODALITIES:
            raise QueryError(f"there are no examples of {self.modality!r}")
        check_limits(agreement, k=self.k, modality=self.target or self.modality)
        return None if self.kappa is None else radius_from_kappa(self.kappa, agreement.code_bits)


def search_own(
    served: ServedRelease, settings: SiteSettings, agreement: Agreement, query: OwnQuery
) -> dict[str, Any]:
    """The site's best studies by code, JSON-able.

    Raises:
        QueryError: The query breaks a limit, or names what the archive does not know.
        DataError: The example cannot be read.
    """
    asked = encoded(query, served.release, served.model, agreement)
    for name in query.filters:
        if name not in served.archive.attributes:
            raise QueryError(
                f"no study of the archive has the attribute {name!r}; "
                f"it knows: {', '.join(served.archive.attributes) or 'none'}"
            )
    searcher = SiteSearcher(settings.name, served.archive, agreement, settings.smallest_kappa)
    answer = searcher.answer(asked)
    return {
        "source": "release",
        "release": served.release.release_id,
        "cut_to_bits": answer.cut_to_bits,
        "hits": [
            {"handle": hit.handle, "distance": hit.distance, "score": hit.score}
            for hit in answer.hits
        ],
    }


def encoded(query: OwnQuery, release: Release, model: HashModel, agreement: Agreement) -> Query:
    """The query by code, for this site's archive or for others.

    Raises:
        QueryError: It breaks a limit, or the release has no such modality.
        DataError: The example cannot be read.
    """
    radius = query.check(agreement)
    target = query.target or query.modality
    content = MODALITIES[query.modality].read(query.example, Path.cwd()).load()
    if target not in model.modalities:
        raise QueryError(
            f"there is no modality {target!r} to search in; "
            f"the release has {', '.join(model.modalities)}"
        )
    return make_query(
        encode_example(model, query.modality, content),
        release_id=release.release_id,
        modality=target,
        k=query.k,
        radius=radius,
        filters=query.filters,
    )


def search_words(
    settings: SiteSettings, agreement: Agreement, query: OwnQuery, reason: str
) -> dict[str, Any]:
    """The site's reports that share words with the example, JSON-able.

    Args:
        settings: The site.
        agreement: What it signed.
        query: Of a report.
        reason: Why words are searched, for the answer.

    Raises:
        QueryError: The example is no report, or the query asks for what words cannot do.
        FedhashError: The keyword store cannot be made.
    """
    if query.modality != "report" or query.target not in {None, "report"}:
        raise QueryError(
            f"{reason}; without a release words are searched in reports, and this asks for "
            f"{query.target or query.modality}: wait for a release, or give a report"
        )
    if query.filters or query.kappa is not None:
        raise QueryError(f"{reason}; a search for words knows no filter and no radius")
    query.check(agreement)
    with open_keywords(settings, agreement) as store:
        matches = store.search(query.example, query.k)
    return {
        "source": "keywords",
        "reason": reason,
        "hits": [{"handle": each.handle, "relevance": each.relevance} for each in matches],
    }
