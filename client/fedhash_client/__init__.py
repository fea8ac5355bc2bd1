"""A site's programs: the relay that Flower starts, and the command line."""

from __future__ import annotations

import os

from fedhash.offline import OFFLINE_SWITCHES

os.environ.update(OFFLINE_SWITCHES)  # before any module of this package imports Flower

__all__: list[str] = []
