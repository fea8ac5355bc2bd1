"""What a site's patients have spent of their privacy, what is left, and what a round would cost.

>>> found = read_budget(Path("site.yaml"), settings, agreement, planned=None)
>>> found.caps[0].spent.together, found.caps[0].left
(1.83, 6.17)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.configuration import problem_at, read_settings
from fedhash.errors import ConfigurationError
from fedhash.privacy import (
    DistributedGaussianStep,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
    PrivacyTerms,
    Spending,
    anchor_of,
    epsilon_after,
    read_ledger,
    spending,
    steps_left,
)
from fedhash.privacy.accountant import NO_TRUST, shared_trust
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.settings import PrivateMode
from fedhash_client.settings import SitePrivacy, SiteSettings

__all__ = [
    "Budget",
    "CapAfter",
    "CapBudget",
    "EventGroup",
    "NextRound",
    "PlannedRound",
    "limits_of",
    "plan_steps",
    "read_budget",
]


@dataclass(frozen=True)
class CapBudget:
    """One cap: "the site" or "the agreement", and what is spent and left of it."""

    of: str
    epsilon_cap: float
    delta: float
    spent: Spending
    left: float


@dataclass(frozen=True)
class EventGroup:
    """Entries that differ in run and round only.

    Of noise that sites add together, `noise_multiplier` is the guaranteed one.
    """

    purpose: str
    kind: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    entries: int


@dataclass(frozen=True)
class CapAfter:
    """A cap after the planned round; `cost` is what the round adds to epsilon."""

    of: str
    together: float
    cost: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class PlannedRound(PrivateSteps):
    """A round to come; of noise that sites add together, `noise_multiplier` is the guaranteed one.

    Its `trust` is what has to hold for the figures, in one sentence.
    """

    mode: PrivateMode
    trust: str


@dataclass(frozen=True, kw_only=True)
class NextRound(PlannedRound):
    """What a round to come would cost, with margin statistics where the run has them.

    Attributes:
        after: Each cap after the round.
        fits: Whether the round fits under all of them.
        steps_left: How many such steps surely fit, beside the statistics of the whole run.
        rounds_left: How many such rounds surely fit, likewise.
        statistics_releases: Rounds of the run with margin statistics.
    """

    after: tuple[CapAfter, ...]
    fits: bool
    steps_left: int
    rounds_left: int
    statistics_releases: int


@dataclass(frozen=True)
class Budget:
    """A verified ledger beside its caps; without a ledger there are no entries and no anchor."""

    ledger: str
    exists: bool
    entries: int
    anchor: str | None
    caps: tuple[CapBudget, ...]
    events: tuple[EventGroup, ...]
    next_round: NextRound | None


def limits_of(privacy: SitePrivacy, agreement: Agreement) -> dict[str, PrivacyTerms]:
    """The caps that bind a site, by whose they are."""
    limits: dict[str, PrivacyTerms] = {"the site": privacy}
    if agreement.privacy is not None:
        limits["the agreement"] = agreement.privacy
    return limits


def plan_steps(
    round_file: Path, agreement: Agreement, modes: Sequence[PrivateMode]
) -> tuple[PlannedRound, list[GaussianRelease]]:
    """The steps of each round of a round file, and the margin statistics of all its rounds.

    Raises:
        ConfigurationError: The file is wrong, its rounds are not private, or the site would refuse
            their privacy.
    """
    # it imports torch, which a display of the ledger does without
    from fedhash.rounds.settings import (
        RoundSettings,
        check_privacy,
        planned_releases,
        private_steps,
    )

    settings = read_settings(round_file, RoundSettings)
    problems = check_privacy(settings, agreement)
    steps = private_steps(settings)
    if steps is None and not problems:
        message = (
            "privacy.mode is none: without noise there is no epsilon, and a site with a cap takes "
            "part in private rounds alone; set privacy: {mode: site, ...}"
        )
        problems = [(("privacy",), message)]
    mode = settings.privacy.mode
    if not problems and mode not in modes:
        message = (
            f"privacy.mode is {mode}, and this site's own file allows {' and '.join(modes)} alone; "
            "its privacy.modes decides, and the site would refuse the round"
        )
        problems = [(("privacy", "mode"), message)]
    if steps is None or mode == "none" or problems:
        raise ConfigurationError([problem_at(round_file, *each) for each in problems])
    releases = planned_releases(settings)
    if releases:
        steps = replace(steps, statistics_noise_multiplier=releases[0].noise_multiplier)
    trust = NO_TRUST
    if settings.privacy.shares_noise:
        corrupt = agreement.secure_aggregation.largest_corrupt_share
        trust = shared_trust(
            f"{corrupt:g} of the other sites of a sum, and one where that is none,"
        )
    return PlannedRound(**asdict(steps), mode=mode, trust=trust), releases


def read_budget(
    site: Path,
    settings: SiteSettings,
    agreement: Agreement,
    planned: tuple[PlannedRound, list[GaussianRelease]] | None,
) -> Budget:
    """Verify the ledger and account for it.

    Args:
        site: The site's file, for messages.
        settings: What it holds.
        agreement: What the site signed.
        planned: From `plan_steps`.

    Raises:
        ConfigurationError: The site's file has no section `privacy`.
        LedgerError: The ledger does not verify, or is gone.
        PrivacyError: The planned steps are out of range.
        StorageError: The operating system refuses the ledger.
    """
    privacy = settings.privacy
    if privacy is None:
        message = (
            "there is no section privacy; add epsilon_cap, delta and ledger, "
            "as configs/site/example.yaml has them"
        )
        raise ConfigurationError([problem_at(site, (), message)])
    entries = read_ledger(privacy.ledger)
    events = [entry.event for entry in entries]
    limits = limits_of(privacy, agreement)
    caps = tuple(_cap(name, terms, events) for name, terms in limits.items())
    exists = privacy.ledger.exists()
    return Budget(
        ledger=str(privacy.ledger),
        exists=exists,
        entries=len(entries),
        anchor=str(anchor_of(entries)) if exists else None,
        caps=caps,
        events=_grouped(events),
        next_round=None if planned is None else _next_round(*planned, events, caps),
    )


def _cap(name: str, terms: PrivacyTerms, events: list[PrivacyEvent]) -> CapBudget:
    spent = spending(events, terms.delta)
    left = max(0.0, terms.epsilon_cap - spent.together)
    return CapBudget(name, terms.epsilon_cap, terms.delta, spent, left)


def _grouped(events: list[PrivacyEvent]) -> tuple[EventGroup, ...]:
    """Groups in the order of their first entries."""
    steps: Counter[tuple[str, str, float, float]] = Counter()
    entries: Counter[tuple[str, str, float, float]] = Counter()
    for event in events:
        sigma = (
            event.guaranteed_noise_multiplier
            if isinstance(event, DistributedGaussianStep)
            else event.noise_multiplier
        )
        rate = event.sampling_rate if isinstance(event, PoissonGaussianSteps) else 1.0
        group = (event.purpose, event.kind, sigma, rate)
        steps[group] += getattr(event, "steps", 1)
        entries[group] += 1
    return tuple(EventGroup(*group, steps[group], count) for group, count in entries.items())


def _next_round(
    planned: PlannedRound,
    releases: Sequence[GaussianRelease],
    events: list[PrivacyEvent],
    caps: tuple[CapBudget, ...],
) -> NextRound:
    after = []
    for cap in caps:
        together = epsilon_after(
            [*events, *releases[:1]],
            noise_multiplier=planned.noise_multiplier,
            sampling_rate=planned.sampling_rate,
            steps=planned.steps,
            delta=cap.delta,
        )
        cost = together - cap.spent.together
        after.append(CapAfter(cap.of, together, cost, fits=together <= cap.epsilon_cap))
    left = min(
        steps_left(
            [*events, *releases],
            noise_multiplier=planned.noise_multiplier,
            sampling_rate=planned.sampling_rate,
            epsilon_cap=cap.epsilon_cap,
            delta=cap.delta,
        )
        for cap in caps
    )
    return NextRound(
        **asdict(planned),
        after=tuple(after),
        fits=all(each.fits for each in after),
        steps_left=left,
        rounds_left=left // planned.steps,
        statistics_releases=len(releases),
    )
