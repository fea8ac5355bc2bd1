"""Releases: model versions that are verified, byte by byte, whenever they are opened."""

from __future__ import annotations

from fedhash.registry.release import Release, load_release, save_release

__all__ = ["Release", "load_release", "save_release"]
