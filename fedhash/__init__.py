"""fedhash: sites train one hash model together and search each other's archives by binary code.

This package is the science and the protocols. It opens no socket, knows no Flower and prints
nothing; the programs in `fedhash_client`, `fedhash_server` and `fedhash_sim` do.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
