"""The researcher's simulator: one YAML file in, tables and plots of non-IID studies out."""

from __future__ import annotations

import os

from fedhash.offline import OFFLINE_SWITCHES

os.environ.update(
    OFFLINE_SWITCHES
)  # before any module of this package imports Flower, Ray or datasets

__all__: list[str] = []
