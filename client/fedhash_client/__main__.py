"""`python -m fedhash_client` is `fedhash-site`."""

from fedhash_client.cli import app

if __name__ == "__main__":
    app()
