"""Manifests: what is read, what is reported by line, and that nothing is dropped in silence."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhash.data import (
    Manifest,
    ManifestRow,
    label_matrix,
    read_manifest,
    split_patients,
    write_manifest,
)
from fedhash.errors import DataError, ManifestError

FINDINGS = ("no_finding", "cardiomegaly", "effusion")
HEADER = "study_id,patient_id,positive,report"
REUSE_FOLDER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def read(folder: Path, text: str | bytes, name: str = "manifest.csv") -> Manifest:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return read_manifest(folder / name, FINDINGS, ["image", "report"])


def only_problem(manifest: Manifest) -> tuple[int | None, str]:
    (problem,) = manifest.problems
    assert problem.file == manifest.path
    return problem.line, problem.message


# --- what is read ---------------------------------------------------------------------------------


def test_a_patient_in_two_forms_of_unicode_is_told(tmp_path: Path) -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    rows = "".join(
        f"s{number},{patient},no_finding,Clear.\n"
        for number, patient in enumerate([decomposed, composed, decomposed])
    )
    manifest = read(tmp_path, f"{HEADER}\n{rows}")
    assert [study.study_id for study in manifest.studies] == ["s0", "s2"]
    assert {study.patient_id for study in manifest.studies} == {decomposed}  # as it is written
    line, message = only_problem(manifest)
    assert line == 3
    assert "stands in another form of Unicode above and would count as two patients" in message


def test_a_row_becomes_a_study(tmp_path: Path) -> None:
    (study,) = read(
        tmp_path,
        "study_id,patient_id,positive,uncertain,consent,report,attr.site,attr.sex\n"
        " s1 ,p1,cardiomegaly; effusion,no_finding,no,Large heart.,Lyon,\n",
    ).studies
    assert (study.study_id, study.patient_id, study.consent) == ("s1", "p1", False)
    assert study.positive == {"cardiomegaly", "effusion"}
    assert study.uncertain == {"no_finding"}
    assert study.contents["report"].load() == "Large heart."
    assert study.attributes == {"site": "Lyon"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_both_forms_of_utf8_and_of_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    text = newline.join([HEADER, "s1,p1,effusion,Pleuraerguß", ""])
    manifest = read(tmp_path, text.encode(encoding))
    assert manifest.studies[0].contents["report"].load() == "Pleuraerguß"
    assert manifest.problems == ()


@pytest.mark.parametrize(
    ("cell", "consent"),
    [("yes", True), ("TRUE", True), ("1", True), ("No", False), ("false", False), ("0", False)],
)
def test_consent_words(tmp_path: Path, cell: str, consent: bool) -> None:
    manifest = read(tmp_path, f"{HEADER},consent\ns1,p1,effusion,text,{cell}\n")
    assert manifest.studies[0].consent is consent


def test_findings_may_be_a_json_list(tmp_path: Path) -> None:
    manifest = read(tmp_path, f'{HEADER}\ns1,p1,"[""effusion"", ""cardiomegaly""]",text\n')
    assert manifest.studies[0].positive == {"effusion", "cardiomegaly"}


def test_an_unlisted_finding_is_negative_and_with_a_negative_column_uncertain(
    tmp_path: Path,
) -> None:
    without = read(tmp_path, f"{HEADER}\ns1,p1,effusion,text\n")
    assert label_matrix(without.studies, FINDINGS).tolist() == [[0, 0, 1]]
    stated = read(tmp_path, f"{HEADER},negative\ns1,p1,effusion,text,no_finding\n")
    assert label_matrix(stated.studies, FINDINGS).tolist() == [[0, -1, 1]]


def test_json_lines_hold_the_same_columns(tmp_path: Path) -> None:
    rows = [
        {
            "study_id": 17,
            "patient_id": "p1",
            "positive": ["effusion"],
            "uncertain": "cardiomegaly",
            "consent": False,
            "report": "Two\nlines.",
            "image": None,
            "attr.age": 71,
        },
        {"study_id": "s2", "patient_id": "p2", "positive": ["effusion"], "report": "text"},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    manifest = read(tmp_path, text, "manifest.jsonl")
    assert manifest.problems == ()
    first, second = manifest.studies
    assert (first.study_id, first.consent, first.attributes) == ("17", False, {"age": "71"})
    assert (first.positive, first.uncertain) == ({"effusion"}, {"cardiomegaly"})
    assert {name: content.load() for name, content in first.contents.items()} == {
        "report": "Two\nlines."
    }
    assert second.consent is True


def test_a_modality_outside_the_agreement_is_left_alone(tmp_path: Path) -> None:
    manifest = read(tmp_path, f"{HEADER},signal\ns1,p1,effusion,text,not-even-a-file\n")
    assert list(manifest.studies[0].contents) == ["report"]
    assert manifest.problems == ()


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    manifest = read(tmp_path, f"{HEADER}\n\ns1,p1,effusion,text\n \t\n,,,\n")
    assert (len(manifest.studies), manifest.problems) == (1, ())


def test_a_header_alone_is_an_empty_manifest(tmp_path: Path) -> None:
    manifest = read(tmp_path, HEADER)
    assert (manifest.studies, manifest.problems) == ((), ())


# --- rows that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",p1,effusion,text", "study_id is blank; every study needs one"),
        ("s1, ,effusion,text", "patient_id is blank; every study needs one"),
        ("s1,p1,,text", "no finding is positive; name at least one"),
        ("s1,p1,Efusion,text", "positive holds 'Efusion', which is not in the vocabulary; did"),
        ("s1,p1,Efusion,text", "did you mean 'effusion'?"),
        ("s1,p1,xyz,text", "positive holds 'xyz', which is not in the vocabulary"),
        ('s1,p1,"[""effusion""",text', "positive starts as a JSON list and is none"),
        ("s1,p1,[1],text", "positive is '[1]'; write finding;finding or a JSON list"),
        ("s1,p1,effusion,", "there is no content in any of image, report; fill in one"),
        ("s1,p1,effusion,@missing.txt", "report: there is no file"),
        ("s1,p1,effusion", "found 3 cells, expected 4 as in the header"),
        ("s1,p1,effusion,a,b", "found 5 cells, expected 4 as in the header; put cells"),
        ('s1,p1,effusion,"a"b', "lines 3 to 3 are not CSV"),
        ("s1,p1,effusion,a\0b", "['report'] hold NUL bytes or text that is not UTF-8"),
        ("s0,p1,effusion,text", "study_id 's0' stands on line 2 already; give every study its"),
        (f"s1,p1,effusion,{'x' * 140_000}", "field larger than field limit (131072)"),
    ],
)
def test_a_bad_row_is_reported_by_line_and_the_others_are_read(
    tmp_path: Path, row: str, message: str
) -> None:
    text = f"{HEADER}\ns0,p0,effusion,first\n{row}\ns9,p9,no_finding,last\n"
    manifest = read(tmp_path, text)
    assert [study.study_id for study in manifest.studies] == ["s0", "s9"]
    line, found = only_problem(manifest)
    assert line == 3
    assert message in found


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("uncertain", "effusion", "effusion stands in more than one of the columns positive,"),
        ("negative", "effusion", "effusion stands in more than one of the columns"),
        ("uncertain,negative", "cardiomegaly,cardiomegaly", "cardiomegaly stands in more than"),
        ("uncertain", "xyz", "uncertain holds 'xyz'"),
        ("consent", "maybe", "consent is 'maybe'; write yes or no, it is never guessed"),
        ("consent", "", "consent is ''; write yes or no"),
        ("image", "s1.png", "image: there is no file"),
    ],
)
def test_a_bad_optional_cell_is_reported(
    tmp_path: Path, columns: str, cells: str, message: str
) -> None:
    manifest = read(tmp_path, f"{HEADER},{columns}\ns1,p1,effusion,text,{cells}\n")
    line, found = only_problem(manifest)
    assert manifest.studies == ()
    assert line == 2
    assert message in found


def test_bytes_that_are_not_utf8_cost_their_row_alone(tmp_path: Path) -> None:
    text = f"{HEADER}\ns1,p1,effusion,Ergu".encode() + b"\xdf\ns2,p2,effusion,text\n"
    manifest = read(tmp_path, text)
    assert [study.study_id for study in manifest.studies] == ["s2"]
    line, found = only_problem(manifest)
    assert line == 2
    assert "save the manifest as UTF-8" in found
    assert str(manifest.problems[0]).encode()  # can be printed


def test_a_quote_that_never_closes_is_reported_with_its_lines(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, f'{HEADER}\ns1,p1,effusion,ok\ns2,p2,effusion,"open\ns3,p3,effusion,x'
    )
    assert [study.study_id for study in manifest.studies] == ["s1"]
    line, found = only_problem(manifest)
    assert line == 3
    assert "lines 3 to 4 are not CSV" in found
    assert "look for a quote that is not closed" in found


def test_lines_are_physical_lines(tmp_path: Path) -> None:
    text = f'{HEADER}\ns1,p1,effusion,"one\ntwo\n\nfour"\n\ns2,p2,wrong,text\n'
    assert only_problem(read(tmp_path, text))[0] == 7


@REUSE_FOLDER
@given(reports=st.lists(st.integers(1, 4), min_size=1, max_size=8), data=st.data())
def test_the_line_of_a_problem_is_where_its_row_starts(
    tmp_path: Path, reports: list[int], data: st.DataObject
) -> None:
    bad = data.draw(st.integers(0, len(reports) - 1))
    lines = [HEADER]
    for number, height in enumerate(reports):
        if number == bad:
            expected = len(lines) + 1
        finding = "wrong" if number == bad else "effusion"
        report = "\n".join(["text"] * height)
        lines += f's{number},p{number},{finding},"{report}"'.split("\n")
    manifest = read(tmp_path, "\n".join(lines))
    assert only_problem(manifest)[0] == expected
    assert len(manifest.studies) == len(reports) - 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "the line is not one JSON object of plain values"),
        ("[1]", "found a list"),
        ('{"study_id": "a", "study_id": "b"}', "a key stands in it twice"),
        ('{"study_id": {"a": 1}}', "study_id holds a dict"),
        ('{"report": ["a"]}', "report holds a list"),
        ("[" * 100_000, "the line is not one JSON object"),
        ('{"study_id": "s1", "report": "\\ud800"}', "['report'] hold NUL bytes or text that"),
        ('{"study_id": "s1", "positive": ["effusion"], "report": "x"}', "patient_id is blank"),
        ('{"patient_id": "p1"}', "study_id is blank"),
    ],
)
def test_a_bad_json_line_is_reported_and_the_others_are_read(
    tmp_path: Path, line: str, message: str
) -> None:
    good = {"study_id": "s9", "patient_id": "p9", "positive": "effusion", "report": "text"}
    manifest = read(tmp_path, f"{line}\n{json.dumps(good)}\n", "manifest.jsonl")
    assert [study.study_id for study in manifest.studies] == ["s9"]
    assert only_problem(manifest)[0] == 1
    assert message in only_problem(manifest)[1]


@REUSE_FOLDER
@given(garbage=st.binary(max_size=300), suffix=st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_after_a_header_are_studies_or_problems(
    tmp_path: Path, garbage: bytes, suffix: str
) -> None:
    head = HEADER.encode() + b"\ns1,p1,effusion,text\n" if suffix == "csv" else b""
    manifest = read(tmp_path, head + garbage, f"manifest.{suffix}")
    assert "".join(map(str, manifest.problems)).encode() is not None
    assert len(manifest.studies) == (suffix == "csv")
    blank = not re.sub(r'[\s,"]', "", garbage.decode(errors="surrogateescape"))
    assert manifest.problems or blank


# --- the file as a whole --------------------------------------------------------------------------


def test_unknown_columns_are_one_problem_and_the_file_is_read(tmp_path: Path) -> None:
    manifest = read(tmp_path, f"{HEADER},consnt,colour,attr.\ns1,p1,effusion,text,no,red,x\n")
    line, found = only_problem(manifest)
    assert len(manifest.studies) == 1
    assert line == 1
    assert "'colour'" in found
    assert "'consnt'; did you mean 'consent'?" in found
    assert "'attr.'" in found
    assert "write attr.NAME for an attribute" in found


def test_unknown_json_keys_are_reported_once(tmp_path: Path) -> None:
    row = {"patient_id": "p", "positive": "effusion", "report": "text", "\ud800": "x"}
    lines = [json.dumps({"study_id": f"s{number}", **row}) for number in range(3)]
    manifest = read(tmp_path, "\n".join(lines), "manifest.jsonl")
    assert len(manifest.studies) == 3
    assert only_problem(manifest)[0] == 1
    assert str(manifest.problems[0]).encode()  # can be printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'study_id'"),
        ("study_id,patientid,positive\n", "has no column 'patient_id'; did you mean 'patientid'"),
        ("study_id;patient_id;positive\n", "separate the columns by commas"),
        (f"{HEADER},report\n", r"has the columns \['report'\] more than once; keep one"),
        (HEADER.encode("utf-16"), "is not UTF-8 text; save the manifest as UTF-8"),
        ('"study_id', "the header of .* is not CSV"),
    ],
)
def test_a_header_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, text)


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.csv cannot be read \(No such file"):
        read_manifest(tmp_path / "manifest.csv", FINDINGS, ["report"])


def test_a_manifest_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"neither \.csv nor \.jsonl; save the manifest as"):
        read(tmp_path, "", "manifest.xlsx")


def test_a_modality_that_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no modality 'reports'; did you mean 'report'"):
        read_manifest(tmp_path / "manifest.csv", FINDINGS, ["reports"])


# --- writing, and adding --------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda name: name == name.strip()
)
PATIENTS = NAMES.map(lambda name: normalize("NFC", name))
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(str.strip)
ROWS = st.lists(
    st.builds(
        ManifestRow,
        study_id=NAMES,
        patient_id=PATIENTS,
        positive=st.just(["effusion"]),
        uncertain=st.sampled_from([(), ("no_finding",)]),
        contents=TEXTS.filter(lambda text: text and text[0] != "@").map(lambda t: {"report": t}),
        attributes=st.dictionaries(st.sampled_from(["site", "sex"]), NAMES),
        consent=st.booleans(),
    ),
    unique_by=lambda row: row.study_id,
)


@REUSE_FOLDER
@given(rows=ROWS)
def test_what_is_written_is_what_is_read(tmp_path: Path, rows: list[ManifestRow]) -> None:
    write_manifest(tmp_path / "manifest.csv", rows)
    manifest = read_manifest(tmp_path / "manifest.csv", FINDINGS, ["report"])
    assert manifest.problems == ()
    for row, study in zip(rows, manifest.studies, strict=True):
        assert (study.study_id, study.patient_id) == (row.study_id, row.patient_id)
        assert (study.positive, study.uncertain) == (set(row.positive), set(row.uncertain))
        assert study.contents["report"].load() == row.contents["report"]
        assert (study.attributes, study.consent) == (row.attributes, row.consent)


def test_a_manifest_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.csv"
    write_manifest(path, [ManifestRow("s1", "p1", ["effusion"], {"report": "old"})])
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_manifest(path, [ManifestRow("s2", "p2", ["effusion"], {"report": "\ud800"})])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_recipes_write_opens_as_plain_csv(tmp_path: Path) -> None:
    row = ManifestRow("s1", "p1", ["no_finding", "effusion"], {"image": "s1.png"}, consent=False)
    write_manifest(tmp_path / "manifest.csv", [row])
    with (tmp_path / "manifest.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {
                "study_id": "s1",
                "patient_id": "p1",
                "positive": "effusion;no_finding",
                "uncertain": "",
                "consent": "no",
                "image": "s1.png",
            }
        ]


@REUSE_FOLDER
@given(where=st.integers(0, 40), patient=st.sampled_from(["p3", "a new patient"]))
def test_two_more_studies_change_no_other(tmp_path: Path, where: int, patient: str) -> None:
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    lines = [f"s{n},p{n // 2},{FINDINGS[n % 3]},text {n}" for n in range(40)]
    more = [f"x{n},{patient},effusion,more" for n in range(2)]
    before = read(tmp_path, "\n".join([HEADER, *lines])).studies
    after = read(tmp_path, "\n".join([HEADER, *lines[:where], *more, *lines[where:]])).studies
    kept = [study for study in after if study.study_id[0] == "s"]
    assert kept == list(before)
    np.testing.assert_array_equal(label_matrix(kept, FINDINGS), label_matrix(before, FINDINGS))
    for split, members in split_patients(before, shares, seed=3).items():
        longer = split_patients(after, shares, seed=3)[split]
        assert tuple(study for study in longer if study.study_id[0] == "s") == members


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.csv")
    with pytest.raises(ManifestError, match="is no file; name the CSV"):
        read_manifest(tmp_path / "manifest.csv", ["no_finding"], ["report"])
