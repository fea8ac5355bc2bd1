"""Where the site's own file and the agreement do not fit each other."""

from __future__ import annotations

from fedhash.agreement import Agreement
from fedhash_client.checks.findings import CheckedSite, Findings

__all__ = ["check_terms"]


def check_terms(site: CheckedSite, found: Findings) -> None:
    """Hold every limit of the site against the agreement's."""
    if site.agreement is None:
        return
    _check_privacy(site, site.agreement, found)
    _check_queries(site, site.agreement, found)
    network = site.settings.network
    if network is not None and site.agreement.release_key is None:
        found.add(
            site.settings.agreement,
            "the agreement names no release_key, so this site takes no release from the network; "
            "have the coordinator add it and send the new agreement",
            "warning",
        )
    if network is not None and "plain" in site.settings.training.aggregations:
        found.add_at(
            site.file,
            ("training", "aggregations"),
            "plain shows the coordinator this site's own update; keep [secure] alone, unless that "
            "is meant",
            "warning",
        )


def _check_privacy(site: CheckedSite, agreement: Agreement, found: Findings) -> None:
    own, agreed = site.settings.privacy, agreement.privacy
    if own is None:
        return
    if agreed is None:
        found.add_at(
            site.file,
            ("privacy",),
            "the agreement has no section privacy, so no round can be private; with this section "
            "the site takes part in private rounds alone, so in none. Have a cap agreed upon, or "
            "remove the section",
            "warning",
        )
        return
    if own.epsilon_cap > agreed.epsilon_cap:
        found.add_at(
            site.file,
            ("privacy", "epsilon_cap"),
            f"the site's cap {own.epsilon_cap:g} is above the agreement's {agreed.epsilon_cap:g}. "
            "Both bind, each at its own delta, so the smaller one stops the site's private rounds "
            f"and this one may never count; lower it to {agreed.epsilon_cap:g} or less",
            "warning",
        )
    if not set(own.modes) & set(agreed.modes):
        found.add_at(
            site.file,
            ("privacy", "modes"),
            f"the agreement allows {' and '.join(agreed.modes)} alone, so the site takes part in "
            "no round; name one of these, or have another agreed upon",
        )


def _check_queries(site: CheckedSite, agreement: Agreement, found: Findings) -> None:
    queries = site.settings.queries
    if queries is None or site.settings.network is None:
        return
    if agreement.search is None:
        found.add_at(
            site.file,
            ("queries",),
            "the agreement has no section search, so nobody may ask this site, and the daemon does "
            "not start; agree on one, or remove the section queries",
        )
        return
    for purpose in queries.purposes:
        if purpose not in agreement.search.purposes:
            known = ", ".join(agreement.search.purposes)
            found.add_at(
                site.file,
                ("queries", "purposes"),
                f"the agreement knows no purpose {purpose!r}; it has {known}. Correct the name, or "
                "remove it",
            )
    if queries.largest_k > agreement.largest_k:
        found.add_at(
            site.file,
            ("queries", "largest_k"),
            f"the agreement's largest_k is {agreement.largest_k}, which binds; lower this to it",
            "warning",
        )
