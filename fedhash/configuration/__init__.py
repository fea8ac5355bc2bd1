"""Reading of YAML configuration files into frozen settings."""

from fedhash.configuration.settings import Settings

__all__ = ["Settings"]
