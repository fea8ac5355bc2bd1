"""Keyword search: a fallback that is marked as such, and forgets whom it must forget."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_releases import AGREEMENT, make_site, word_of

from fedhash.errors import ArchiveError, QueryError
from fedhash.index import site_handle
from fedhash.index.keywords import KeywordStore
from fedhash_client.archive_index import read_handle_key
from fedhash_client.keyword_index import open_keywords
from fedhash_client.own_search import OwnQuery, search_words

REPORTS = [
    ("aa", "p1", "Large pleural effusion on the left."),
    ("bb", "p2", "No effusion. Clear lungs."),
    ("cc", "p3", "Clear lungs, clear heart; a nodule NEAR the hilum."),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    KeywordStore.build(tmp_path / "keywords.sqlite", "f" * 64, REPORTS)
    return tmp_path / "keywords.sqlite"


def test_more_and_rarer_words_come_first(path: Path) -> None:
    with KeywordStore(path) as store:
        assert store.fingerprint == "f" * 64
        found = store.search("pleural effusion", k=10)
        assert [match.handle for match in found] == ["aa", "bb"]
        assert found[0].relevance > found[1].relevance
        assert len(store.search("clear effusion", k=1)) == 1
        assert store.search("pneumonia", k=10) == []
        assert store.search("...", k=10) == []
    assert path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=100)
@given(st.text())
def test_no_text_is_an_operator_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.sqlite"
    if not path.exists():
        KeywordStore.build(path, "f", REPORTS)
    with KeywordStore(path) as store:
        assert len(store.search(text, k=10)) <= 3
        assert store.search('NEAR AND OR NOT "', k=10) == store.search("near and or not", k=10)


def test_what_is_no_store_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ArchiveError, match="keyword store"):
        KeywordStore(tmp_path / "none.sqlite")
    (tmp_path / "other.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(ArchiveError, match="remove it"):
        KeywordStore(tmp_path / "other.sqlite")


def test_the_sites_store_follows_the_manifest_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    store_path = tmp_path / "state" / "keywords.sqlite"

    def handles(text: str) -> set[str]:
        with open_keywords(site, AGREEMENT) as store:
            return {match.handle for match in store.search(text, k=50)}

    key = read_handle_key(site.handle_key)
    of_seven = {site_handle(key, "study-7-0"), site_handle(key, "study-7-1")}
    assert handles(word_of(7)) == of_seven
    before = store_path.read_bytes()
    assert handles(word_of(7)) == of_seven
    assert store_path.read_bytes() == before, "nothing changed, nothing is made anew"
    text = site.manifest.read_text()
    site.manifest.write_text(text.replace(word_of(7), "fracture").replace(",yes", ",no", 1))
    assert handles(word_of(7)) == set()
    assert handles("fracture") == of_seven
    assert site_handle(key, "study-0-0") not in handles("effusion"), "no consent, no index"
    store_path.write_bytes(b"no store")
    assert handles("fracture") == of_seven


def test_an_answer_by_words_says_so_and_does_no_more_than_words(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    query = OwnQuery(modality="report", example=word_of(3))
    answer = search_words(site, AGREEMENT, query, "there is no release")
    assert (answer["source"], answer["reason"]) == ("keywords", "there is no release")
    assert len(answer["hits"]) == 2
    for change in (
        {"modality": "image", "example": "film.png"},
        {"target": "image"},
        {"filters": {"sex": "f"}},
        {"kappa": 0.5},
        {"k": 1000},
    ):
        with pytest.raises(QueryError):
            search_words(site, AGREEMENT, query.model_copy(update=change), "no release")
    images = AGREEMENT.model_copy(update={"modalities": ("image",)})
    with pytest.raises(QueryError, match="has no reports"):
        open_keywords(site, images)
