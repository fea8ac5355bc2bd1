"""What the commands show of a router's answer.

>>> describe(merged)["partial"]
True
"""

from __future__ import annotations

from fedhash.search.answers import Merged, SiteResult

__all__ = ["describe", "explain"]

_MEANINGS = {
    "refused": "its rules forbid it",
    "late": "no answer in time",
    "busy": "it has too many queries",
    "left": "its connection broke",
    "invalid": "its answer is not its own, or broke the protocol",
    "other_release": "it holds another release",
    "not_attached": "it is not connected",
}


def describe(merged: Merged) -> dict[str, object]:
    """The answer for programs, JSON-able."""
    return {
        "partial": bool(merged.missing),
        "hits": [
            {"site": h.site, "handle": h.handle, "distance": h.distance, "score": h.score}
            for h in merged.hits
        ],
        "sites": [
            {
                "site": each.site,
                "outcome": each.outcome,
                "reason": each.reason,
                "hits": each.hits,
                "cut_to_bits": each.cut_to_bits,
            }
            for each in merged.sites
        ],
    }


def explain(result: SiteResult) -> str:
    """What became of the query at a site, in words."""
    if result.outcome == "answered":
        cut = "" if result.cut_to_bits is None else f", up to distance {result.cut_to_bits} only"
        return f"{result.hits} hits{cut}"
    detail = result.reason[:24]
    if result.outcome == "other_release":
        detail = detail[:12] or "none yet"
    meaning = _MEANINGS[result.outcome]
    return f"missing: {meaning}" + (f" ({detail})" if detail else "")
