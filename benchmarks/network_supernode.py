"""Flower's SuperNode as a site of this project starts it, without the site's certificate."""

from __future__ import annotations

import sys

from flwr.supernode.cli.flower_supernode import flower_supernode

from fedhash_client.prompt_pulls import pull_promptly

if __name__ == "__main__":
    sys.argv[0] = "flower-supernode"
    pull_promptly()
    flower_supernode()
