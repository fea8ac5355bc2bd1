"""Releases at a site: fetched, verified, encoded in the background, and served one at a time."""

from __future__ import annotations

__all__: list[str] = []
