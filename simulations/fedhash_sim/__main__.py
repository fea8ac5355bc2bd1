"""`python -m fedhash_sim` is `fedhash-sim`."""

from fedhash_sim.cli import app

if __name__ == "__main__":
    app()
