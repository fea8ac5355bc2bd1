"""How often somebody may do something: a bucket that refills evenly.

A new bucket is full. Whoever waited may take all of it at once, so within any one window at most
twice `count` are taken. Time is passed in; a clock that was set back gives nothing, and one that
was set back by more than a window counts from there: nobody waits until an hour that was wrong.

    >>> allowance = Allowance(count=2, window_ms=1000)
    >>> [allowance.take(now_ms=0) for _ in range(3)], allowance.take(now_ms=500)
    ([True, True, False], True)
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Allowance"]


@dataclass(slots=True)
class Allowance:
    """A bucket of `count` that an empty one takes `window_ms` to refill."""

    count: int
    window_ms: int
    _left_ms: int | None = field(default=None, init=False)  # counts in units of window_ms
    _at_ms: int = field(default=0, init=False)

    def take(self, now_ms: int) -> bool:
        """Take one if there is one."""
        full = self.count * self.window_ms
        if self._left_ms is None:
            self._left_ms, self._at_ms = full, now_ms
        if now_ms < self._at_ms - self.window_ms:
            self._at_ms = now_ms
        passed = max(0, now_ms - self._at_ms)
        self._at_ms = max(self._at_ms, now_ms)
        self._left_ms = min(full, self._left_ms + passed * self.count)
        if self._left_ms < self.window_ms:
            return False
        self._left_ms -= self.window_ms
        return True
