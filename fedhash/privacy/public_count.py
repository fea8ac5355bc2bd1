"""A site's number of patients, as far as it is no secret.

>>> published_patients(1377)
1400
"""

from __future__ import annotations

__all__ = ["published_patients"]


def published_patients(patients: int) -> int:
    """A site's number of patients as it is made public: two leading digits, and tens at least.

    Neighbours may differ in it (99 patients and 100 do not, 104 and 105 do), so it is no part of
    what is protected. The rounding keeps the exact number, and with it who joined, at the site.
    """
    grain = 10 if patients < 1000 else 10 ** (len(str(patients)) - 2)
    return max(10, (patients + grain // 2) // grain * grain)
