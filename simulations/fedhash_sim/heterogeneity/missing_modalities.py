"""Which site lacks which modalities.

1. Of S sites, `shares` takes a modality from exactly share x S, rounded; for each modality another
   draw, so that a site may lack several.
2. Every site keeps a modality: one that was to lose all gives a loss, drawn, to a site that can
   bear it. Some site keeps each modality.
3. A site's draw depends on the seed, its name and the modality alone.

>>> settings = MissingModalities(shares={"signal": 0.5})
>>> lacking(settings, ["a", "b", "c", "d"], ["image", "signal"], seed=0)
{'b': ('signal',), 'd': ('signal',)}
"""

from __future__ import annotations

from collections.abc import Sequence

from fedhash.configuration import KeyPath, did_you_mean
from fedhash.randomness import stream_seed
from fedhash_sim.heterogeneity.settings import MissingModalities

__all__ = ["lacking", "missing_faults"]

_KEY = "missing_modalities"


def missing_faults(
    settings: MissingModalities, modalities: Sequence[str], sites: Sequence[str] | None
) -> list[tuple[KeyPath, str]]:
    """What cannot be: the key of the study file, and what to do.

    Args:
        settings: What the study asks for.
        modalities: Those of the round's model.
        sites: Names of all sites; None where only the data will tell them.
    """
    asked: list[tuple[KeyPath, str]] = [((_KEY, "shares", each), each) for each in settings.shares]
    asked += [
        ((_KEY, "sites", site, number), each)
        for site, lost in settings.sites.items()
        for number, each in enumerate(lost)
    ]
    no_tower = f"{_KEY} names {{!r}}, and the round's model has no tower for it; {{}}"
    faults = [
        (key, no_tower.format(each, did_you_mean(each, modalities)))
        for key, each in asked
        if each not in modalities
    ]
    faults += [
        ((_KEY, "sites", site), f"{_KEY}.sites leaves nothing to {site!r}; take less from it")
        for site, lost in settings.sites.items()
        if set(lost) >= set(modalities)
    ]
    if sites is None:
        return faults
    faults += _faults_of_named(settings, modalities, sites)
    faults += _faults_of_shares(settings, sites)
    lost = sum(_count(share, len(sites)) for share in settings.shares.values())
    most = len(sites) * (len(modalities) - 1)
    if not faults and lost > most:
        message = (
            f"{_KEY}.shares takes {lost} modalities from {len(sites)} sites of {len(modalities)} "
            f"each, and with more than {most} some site keeps none; lower a share"
        )
        faults.append(((_KEY, "shares"), message))
    return faults


def lacking(
    settings: MissingModalities, sites: Sequence[str], modalities: Sequence[str], seed: int
) -> dict[str, tuple[str, ...]]:
    """What each site lacks; sites that have all are left out.

    Args:
        settings: Without `missing_faults`.
        sites: Names of all sites.
        modalities: Those of the round's model.
        seed: The experiment's seed.
    """
    lost = {site: set(settings.sites.get(site, ())) for site in sorted(sites)}
    for modality, share in settings.shares.items():
        for site in _drawn(list(lost), seed, modality)[: _count(share, len(lost))]:
            lost[site].add(modality)
    for site, own in lost.items():
        if len(own) == len(modalities):
            able = [each for each in lost if len(lost[each]) < len(modalities) - 1]
            other = _drawn(able, seed, "given by", site)[0]
            given = _drawn(sorted(own - lost[other]), seed, "given", site)[0]
            own.remove(given)
            lost[other].add(given)
    return {site: tuple(sorted(own)) for site, own in lost.items() if own}


def _faults_of_named(
    settings: MissingModalities, modalities: Sequence[str], sites: Sequence[str]
) -> list[tuple[KeyPath, str]]:
    unknown = f"{_KEY}.sites names {{!r}}, which is no site that takes part; {{}}"
    faults: list[tuple[KeyPath, str]] = [
        ((_KEY, "sites", site), unknown.format(site, did_you_mean(site, sites)))
        for site in settings.sites
        if site not in sites
    ]
    everywhere = [
        modality
        for modality in modalities
        if all(modality in settings.sites.get(site, ()) for site in sites)
    ]
    faults += [
        ((_KEY, "sites"), f"{_KEY}.sites leaves {each!r} to no site; let one keep it")
        for each in everywhere
    ]
    return faults


def _faults_of_shares(
    settings: MissingModalities, sites: Sequence[str]
) -> list[tuple[KeyPath, str]]:
    faults: list[tuple[KeyPath, str]] = []
    for modality, share in settings.shares.items():
        count = _count(share, len(sites))
        if count in {0, len(sites)}:
            message = f"{_KEY}.shares.{modality} is {share:g}, which of {len(sites)} sites is " + (
                "none; raise it" if count == 0 else "every one; lower it"
            )
            faults.append(((_KEY, "shares", modality), message))
    return faults


def _count(share: float, sites: int) -> int:
    return int(share * sites + 0.5)


def _drawn(names: Sequence[str], seed: int, *purpose: str) -> list[str]:
    """The names in an order of their own draws."""
    return sorted(names, key=lambda each: stream_seed(seed, _KEY, *purpose, each))
