"""Files that are no good YAML, or that mean harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhash.configuration import Settings, read_settings
from fedhash.errors import ConfigurationError


class Free(Settings):
    """Takes nearly anything, so that only the YAML itself can be wrong."""

    a: object = None
    b: object = None


def problem_of(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Free)
    (problem,) = caught.value.problems
    assert problem.file == path
    return f"{problem.line}: {problem.message}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "None: the file is empty; expected a mapping of keys to values, such as 'a: ...'"),
        (b"# only a comment\n", "None: the file is empty"),
        (b"---\n...\n", "None: the file is empty"),
        (b"- a\n- b\n", "None: the file holds a list of 2; expected a mapping"),
        (b"hello\n", "None: the file holds text 'hello'; expected a mapping"),
        (b"a: 1\nb: [1, 2\n", "3: not valid YAML while parsing a flow sequence: expected"),
        (b"a: 1\n\tb: 2\n", "2: not valid YAML while scanning for the next token: found char"),
        (b"a: 1\nb: c: d\n", "2: not valid YAML: mapping values are not allowed here"),
        (b"a: 'open\n", "2: not valid YAML while scanning a quoted scalar: found unexpected end"),
        (b"a: 1\n---\nb: 2\n", "2: not valid YAML expected a single document"),
        (b"a: 1\nb: *nowhere\n", "2: not valid YAML: found undefined alias 'nowhere'"),
        (b"a: 1\nb: caf\xe9\n", "2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), "1: byte 0xff is not UTF-8"),
        (b"a: 1\nb: x\x00y\n", "2: not valid YAML: character #x0000 is not allowed"),
        (b"a: 1\nb: \x1b[31m\n", "2: not valid YAML: character #x001b is not allowed"),
        (b"a: 1\nb: 2\na: 3\n", '3: key "a" stands on line 1 already; keep one'),
        (b"a:\n  x: 1\n  x: 1\n", '3: key "a.x" stands on line 2 already; keep one'),
        (b"a:\n- {x: 1, x: 2}\n", '2: key "a.0.x" stands on line 2 already; keep one'),
        (b"? [a, b]\n: 1\n", "1: a key must be text; found a list or a mapping"),
        (b"a: !!python/object/apply:os.system [ls]\n", "1: tag !!python/object/apply:os.system is"),
        (b"a: !!python/name:os.system x\n", "1: tag !!python/name:os.system is not supported"),
        (b"a: !own {x: 1}\n", "1: tag !own is not supported; write a plain value"),
        (b"a: !!binary aGk=\n", "1: tag !!binary is not supported"),
        (b"a: !!set {x}\n", "1: tag !!set is not supported"),
        (b"a: !!int three\n", "1: text 'three' cannot be read as !!int"),
        (b"a: !!bool maybe\n", "1: text 'maybe' cannot be read as !!bool"),
        (b"a: " + b"9" * 5000 + b"\n", "1: text '9999"),
        (b'a: "\\ud800"\n', "1: text '\\ud800' cannot be read as !!str"),
        (b"a: &x [*x]\n", "None: nested deeper than 50 levels, or an alias that holds itself"),
        (b"a: &x {y: *x}\n", "None: nested deeper than 50 levels"),
        (b"a: " + b"[" * 60 + b"]" * 60, "None: nested deeper than 50 levels"),
        (b"a: " + b"[" * 50_000 + b"]" * 50_000, "None: nested deeper than 50 levels"),
    ],
)
def test_a_broken_file(tmp_path, content, expected):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert problem_of(path).startswith(expected)


def test_absent_and_unreadable_files(tmp_path):
    assert problem_of(tmp_path / "absent.yaml") == (
        "None: cannot be read (No such file or directory); name an existing YAML file"
    )
    assert problem_of(tmp_path).startswith("None: cannot be read (Is a directory)")


def test_a_large_file_is_not_parsed(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("a: " + "x" * 1_000_000)
    assert problem_of(path).startswith("None: holds more than 1000000 bytes")


def test_aliases_may_be_used_but_not_to_explode(tmp_path):
    path = tmp_path / "alias.yaml"
    path.write_text("a: &x {k: [1, 2]}\nb: [*x, *x]\n")
    assert read_settings(path, Free).b == [{"k": [1, 2]}] * 2
    levels = ["a: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    levels += [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path.write_text("\n".join(levels))
    assert problem_of(path).endswith("holds more than 20000 values; write fewer, or fewer aliases")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 1e-3),
        ("+.5E2", 50.0),
        ("7.", 7.0),
        ("-12", -12),
        ("010", 10),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        (".inf", ".inf"),
        ("0x1F", "0x1F"),
        ("<<", "<<"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, scalar, value):
    path = tmp_path / "scalar.yaml"
    path.write_text(f"a: {scalar}\n", encoding="utf-8-sig", newline="\r\n")
    read = read_settings(path, Free).a
    assert (read, type(read)) == (value, type(value))


def test_keys_are_text(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("a: {1: x, no: y, ~: z}\n")
    assert read_settings(path, Free).a == {"1": "x", "no": "y", "~": "z"}
