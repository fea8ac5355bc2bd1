"""What README and the guides point to is there, and nothing in them waits to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_document_is_whole_and_points_to_what_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "@@" not in text
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert all((path.parent / link).exists() for link in links if "://" not in link)
    named = re.findall(r"\b(?:configs|docs|fedhash|tests)/[\w/.-]+\.(?:yaml|md|py)\b", text)
    assert all((ROOT / name).is_file() for name in named)
