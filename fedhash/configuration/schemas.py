"""JSON Schemas of the settings, for the completion and checks of an editor.

A configuration names its schema on its first line:

    # yaml-language-server: $schema=../schemas/agreement.schema.json

    write_schemas(Path("configs/schemas"), {"agreement": Agreement})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhash.configuration.settings import Settings

__all__ = ["json_schema", "write_schemas"]


def json_schema(kind: type[Settings]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `read_settings` accepts."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}


def write_schemas(folder: Path, kinds: Mapping[str, type[Settings]]) -> None:
    """Write `<name>.schema.json` for every kind; the same kinds give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in kinds.items():
        text = json.dumps(json_schema(kind), indent=2) + "\n"
        (folder / f"{name}.schema.json").write_text(text, encoding="utf-8")
