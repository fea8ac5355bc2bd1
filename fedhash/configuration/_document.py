"""A YAML text as plain data that remembers the line of every value.

Rules:
    1. YAML 1.2 core scalars in decimal: `1e-3` is a number, `no` and `010_0` are text. (YAML 1.1,
       PyYAML's default, reads `1e-3` as text, `no` as false and `010` as 8.)
    2. No tag constructs an object. Keys are text. A key stands once in a mapping.
    3. Size, depth and the number of values after expanding aliases are limited, so that no file
       exhausts the memory ("billion laughs").

Source: YAML 1.2.2, section 10.3 (core schema).

    document = Document.parse("rounds: 40", Path("round.yaml"))
    document.data                  # {"rounds": 40}
    document.place(("rounds",))    # (Path("round.yaml"), 1)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from fedhash.configuration._words import dotted, found
from fedhash.errors import ConfigurationError, Problem

__all__ = ["OVERRIDE", "Document", "KeyPath", "PlainDumper"]

KeyPath: TypeAlias = tuple[str | int, ...]

OVERRIDE = Path("--set")  # the "file" of values given on a command line
_LARGEST_FILE_BYTES = 1_000_000
_LARGEST_VALUE_COUNT = 20_000  # ten times the largest agreement: 1000 findings and their parents
_LARGEST_DEPTH = 50

_TAG = "tag:yaml.org,2002:"


def _text(scalar: str) -> str:
    scalar.encode()  # a lone surrogate such as "\ud800" is no text: UnicodeEncodeError
    return scalar


_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "null": lambda _: None,
    _TAG + "bool": lambda scalar: {"true": True, "false": False}[scalar.lower()],
    _TAG + "int": int,
    _TAG + "float": float,
    _TAG + "str": _text,
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's class registry


class PlainDumper(yaml.SafeDumper):
    """Writes text so that :meth:`Document.parse` reads the same values."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's class registry

    def ignore_aliases(self, _data: object) -> bool:
        """Write equal values out in full instead of `&id001` and `*id001`."""
        return True


def _write_text(dumper: PlainDumper, text: str) -> yaml.Node:
    # unprintable characters, line breaks among them, survive in double quotes only
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


PlainDumper.add_representer(str, _write_text)

for _kind, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
]:
    for _class in (_Loader, PlainDumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) with the place of every value.

    Attributes:
        data: The root value; None for an empty text.
        places: File and line (from 1; None on a command line) by key path.
        problems: Duplicate keys, foreign tags and unreadable scalars.
    """

    file: Path
    data: Any = None
    places: dict[KeyPath, tuple[Path, int | None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Document:
        """Read a UTF-8 file.

        Raises:
            ConfigurationError: The file is absent, too large, not UTF-8, or not YAML.
        """
        try:
            with file.open("rb") as stream:
                raw = stream.read(_LARGEST_FILE_BYTES + 1)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); name an existing YAML file"
            raise ConfigurationError([Problem(file, None, reason)]) from error
        if len(raw) > _LARGEST_FILE_BYTES:
            reason = f"holds more than {_LARGEST_FILE_BYTES} bytes; is it a configuration file?"
            raise ConfigurationError([Problem(file, None, reason)])
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            reason = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
            raise ConfigurationError([Problem(file, line, reason)]) from error
        return cls.parse(text, file)

    @classmethod
    def parse(cls, text: str, file: Path) -> Document:
        """Parse one YAML document.

        Raises:
            ConfigurationError: The text is not YAML, or exceeds a limit.
        """
        document = cls(file)
        try:
            root = yaml.compose(text, _Loader)
            if root is not None:
                document.data = document._plain(root, ())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else None
            context = f" {error.context}" if error.context else ""
            reason = f"not valid YAML{context}: {error.problem}"
            raise ConfigurationError([Problem(file, line, reason)]) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            reason = f"not valid YAML: character #x{error.character:04x} is not allowed"
            raise ConfigurationError([Problem(file, line, reason)]) from error
        except RecursionError as error:
            reason = f"nested deeper than {_LARGEST_DEPTH} levels, or an alias that holds itself"
            raise ConfigurationError([Problem(file, None, reason)]) from error
        return document

    def place(self, path: KeyPath) -> tuple[Path, int | None]:
        """File and line of the value, or of the nearest mapping or list around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def override(self, assignment: str) -> None:
        """Set one value from `a.b.c=value`, where value is YAML and list entries are numbers."""
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            self._report(OVERRIDE, None, f"'{assignment}' is no override; write key.path=value")
            return
        try:
            value = Document.parse(text, OVERRIDE)
            problems = value.problems
        except ConfigurationError as error:
            problems = list(error.problems)
        if not problems:
            self._set(assignment, key.split("."), value.data)
        for problem in problems:
            self._report(OVERRIDE, None, f"in '{assignment}': {problem.message}")

    def _set(self, assignment: str, names: list[str], value: Any) -> None:
        node = self.data
        path: KeyPath = ()
        for name in names:
            parent, part = node, name  # type: Any, str | int
            if isinstance(parent, list) and name.isdecimal() and int(name) < len(parent):
                part = int(name)
            elif isinstance(parent, dict):
                if parent.get(name) is None:
                    parent[name] = {}
                    self.places[*path, name] = (OVERRIDE, None)
            else:
                reason = f'"{dotted(path)}" is {found(parent)} and has no entry "{name}"'
                self._report(OVERRIDE, None, f"in '{assignment}': {reason}")
                return
            path, node = (*path, part), parent[part]
        parent[part] = value
        self.places = {p: at for p, at in self.places.items() if p[: len(path)] != path}
        self.places[path] = (OVERRIDE, None)

    def _plain(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node; aliased nodes are visited, and counted, at every use."""
        line = node.start_mark.line + 1
        self.places.setdefault(path, (self.file, line))  # an entry of a mapping has its key's line
        if len(self.places) > _LARGEST_VALUE_COUNT:
            reason = f"holds more than {_LARGEST_VALUE_COUNT} values; write fewer, or fewer aliases"
            raise ConfigurationError([Problem(self.file, line, reason)])
        if len(path) > _LARGEST_DEPTH:
            raise RecursionError  # answered in `parse`, as PyYAML's own
        if isinstance(node, yaml.MappingNode):
            self._refuse_tag(node, "map")
            return self._plain_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, "seq")
            return [self._plain(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag not in _SCALARS:
            self._refuse_tag(node, "str")
            return node.value
        try:
            return _SCALARS[node.tag](node.value)
        except (KeyError, ValueError):
            kind, unreadable = node.tag.replace(_TAG, "!!"), found(node.value)
            self._report(self.file, line, f"{unreadable} cannot be read as {kind}")
            return unreadable

    def _plain_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._report(self.file, line, "a key must be text; found a list or a mapping")
                continue
            name = key.value.encode(errors="backslashreplace").decode()  # no lone surrogates
            if name in mapping:
                first = self.places[*path, name][1]
                reason = f'key "{dotted((*path, name))}" stands on line {first} already; keep one'
                self._report(self.file, line, reason)
            else:
                self.places[*path, name] = (self.file, line)
                mapping[name] = self._plain(value, (*path, name))
        return mapping

    def _refuse_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            tag = node.tag.replace(_TAG, "!!")
            reason = f"tag {tag} is not supported; write a plain value"
            self._report(self.file, node.start_mark.line + 1, reason)

    def _report(self, file: Path, line: int | None, message: str) -> None:
        self.problems.append(Problem(file, line, message))
