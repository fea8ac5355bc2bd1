"""The classes of Opacus that are used here, imported without its hand on the root logger.

Opacus 1.6 calls `logging.basicConfig` when it is imported, which does nothing where the root logger
has a handler; a program's own logging must not depend on whether a private round came first.
"""

from __future__ import annotations

import logging

__all__ = ["DPOptimizer", "GradSampleHooks"]

_placeholder = logging.NullHandler()
logging.root.addHandler(_placeholder)
try:
    from opacus.grad_sample import GradSampleHooks
    from opacus.optimizers import DPOptimizer
finally:
    logging.root.removeHandler(_placeholder)
