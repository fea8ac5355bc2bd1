"""The agreement: its limits, and a digest that two parties compare."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.codes import check_code_bits
from fedhash.configuration import read_settings, resolved
from fedhash.errors import ConfigurationError, ModelError
from fedhash.secagg.identity import SiteIdentity

GOOD = {"name": "demo", "findings": ["no_finding", "edema", "mass"], "modalities": ["image"]}
KEY = SiteIdentity.from_seed(bytes(32)).public_hex
TREE = {"edema": "mass", "mass": "no_finding"}


def agree(**changes: object) -> Agreement:
    return Agreement.model_validate_json(json.dumps({**GOOD, **changes}))


def test_defaults():
    agreement = agree()
    assert agreement.findings == ("no_finding", "edema", "mass")
    assert agreement.margin_range == (0.05, 0.6)
    assert (agreement.code_bits, agreement.smallest_cohort) == (64, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "at least 1 character"),
        ({"version": 0}, "greater than or equal to 1"),
        ({"findings": ["edema"]}, "at least 2 items"),
        ({"findings": [f"f{i}" for i in range(1001)]}, "at most 1000 items"),
        ({"findings": ["edema", "mass", "edema"]}, "listed more than once: edema; keep one"),
        ({"findings": ["Pleural Effusion", "x"]}, "such as 'pleural_effusion'"),
        ({"findings": ["x", "1"]}, "'1' is no name; write lowercase letters.*'pleural_effusion'"),
        ({"findings": ["x", "mass\n"]}, r"'mass\\n' is no name"),
        ({"modalities": []}, "at least 1 item"),
        ({"modalities": ["image", "image"]}, "listed more than once: image"),
        ({"parents": {"edma": "mass"}}, r"not among the findings: 'edma' \(did you mean \"edema\""),
        ({"parents": {"edema": "tumor"}}, r"not among the findings: 'tumor' \(valid here: no_find"),
        ({"parents": {"edema": "edema"}}, "edema -> edema is a circle"),
        ({"parents": {**TREE, "no_finding": "edema"}}, "edema -> mass -> no_finding -> edema is a"),
        ({"ancestor_weight": 1.1}, "less than or equal to 1"),
        ({"smallest_cohort": 0}, "greater than or equal to 1"),
        ({"margin_range": [0.6, 0.05]}, "the lowest margin 0.6 is above the highest 0.05; swap"),
        ({"margin_range": [-0.1, 0.5]}, "greater than or equal to 0"),
        ({"margin_range": [0.1, 2.5]}, "less than or equal to 2"),
        ({"largest_k": 0}, "greater than or equal to 1"),
        ({"largest_local_steps": 0}, "greater than or equal to 1"),
        ({"sites": {"b": KEY, "a": KEY}}, "one public key for b and a; each site makes a key of"),
        (
            {"sites": {"a": KEY, "A": "58" + "66" * 31}},
            "by upper and lower case alone: 'a' and 'A'",
        ),
        ({"sites": {"Coordinator": KEY}}, "'coordinator', by which name the coordinator asks"),
        ({"sites": {"a": "00" * 32}}, r"sites\.a\n.*is a point of small order.*site identity"),
        ({"sites": {"a": "02" + "00" * 31}}, r"sites\.a\n.*is no point of the curve"),
        ({"sites": {"a": "f" * 64}}, r"sites\.a\n.*is not written as RFC 8032"),
    ],
)
def test_terms_that_no_one_can_keep(changes, message):
    with pytest.raises(ValidationError, match=message):
        agree(**changes)


def test_parents_form_a_tree():
    assert agree(parents=TREE).parents == TREE


def test_code_bits_are_those_that_codes_allow():
    for code_bits in range(-8, 300):
        try:
            check_code_bits(code_bits)
        except ModelError:
            with pytest.raises(ValidationError, match="code_bits"):
                agree(code_bits=code_bits)
        else:
            assert agree(code_bits=code_bits).code_bits == code_bits


def test_the_digest_is_published_and_stays():
    # Peers of different versions compare it: a change here needs a new protocol version.
    assert agree().digest() == "c05e79ebdbe081e81e7104ddb969da650c9dd0a26a20aa8db7ca7f9975115024"


def test_the_digest_depends_on_every_term_and_on_nothing_else(tmp_path):
    changes = {
        "name": "other",
        "version": 2,
        "findings": ["edema", "no_finding", "mass"],
        "parents": TREE,
        "ancestor_weight": 0.25,
        "code_bits": 32,
        "anchors_version": 2,
        "modalities": ["report"],
        "smallest_cohort": 4,
        "margin_range": [0.05, 0.5],
        "largest_margin_step": 0.1,
        "largest_k": 10,
        "largest_local_steps": 10,
        "sites": {"hospital-a": KEY},
        "secure_aggregation": {"ring_bits": 24},
        "release_key": KEY,
        "privacy": {"epsilon_cap": 8, "delta": 1e-5},
        "search": {"purposes": {"care": "all"}},
    }
    assert set(changes) == set(Agreement.model_fields)
    digests = {agree(**{term: value}).digest() for term, value in changes.items()}
    assert len(digests | {agree().digest()}) == len(changes) + 1
    both = agree(privacy={**changes["privacy"], "modes": ["site", "distributed"]})
    assert both.digest() not in digests

    agreement = agree(parents=TREE)
    backwards = agree(parents=dict(reversed(TREE.items())), ancestor_weight=0.5)
    assert agreement.digest() == backwards.digest()
    path = tmp_path / "agreement.yaml"
    path.write_text(resolved(agreement), encoding="utf-8")
    assert read_settings(path, Agreement).digest() == agreement.digest()
    assert agree(ancestor_weight=1).digest() == agree(ancestor_weight=1.0).digest()


def test_a_wrong_public_key_has_the_line_of_its_site(tmp_path):
    path = tmp_path / "agreement.yaml"
    path.write_text(
        "name: demo\nfindings: [edema, mass]\nmodalities: [image]\nsites:\n"
        f"  hospital-a: {KEY}\n  hospital-b: '{'00' * 32}'\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Agreement)
    ((line, message),) = [(problem.line, problem.message) for problem in caught.value.problems]
    assert (line, message.partition(":")[0]) == (6, '"sites.hospital-b"')


def test_a_file_with_wrong_findings_names_each_line(tmp_path):
    path = tmp_path / "agreement.yaml"
    path.write_text(
        "name: demo\nfindings:\n  - Edema\n  - 3\n  - mass\nparents: {Edema: mass}\n"
        "modalities: [image]\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Agreement)
    assert [(p.line, p.message[:13]) for p in caught.value.problems] == [
        (3, '"findings.0":'),
        (4, '"findings.1" '),
    ]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"version": 2, "sites": {"a": KEY}, "largest_k": 7, "smallest_cohort": 5}, True),
        ({"margin_range": [0.1, 0.2], "search": {"purposes": {"care": "all"}}}, True),
        ({"name": "other"}, False),
        ({"findings": ["edema", "no_finding", "mass"]}, False),
        ({"parents": {"edema": "mass"}}, False),
        ({"ancestor_weight": 0.4}, False),
        ({"code_bits": 32}, False),
        ({"anchors_version": 2}, False),
        ({"modalities": ["image", "report"]}, False),
    ],
)
def test_codes_keep_their_meaning_where_a_site_joins(
    changes: dict[str, object], same: bool
) -> None:
    assert agree().digest() != agree(**changes).digest()
    assert (agree().codes_digest() == agree(**changes).codes_digest()) is same
