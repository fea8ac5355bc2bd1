"""The audit of a margin schedule: each step with all that it was computed from.

A run writes an entry (`fedhash.audit_log`) for each step before it stores the state that uses it,
into `margin_audit.jsonl` beside its checkpoints. A coordinator that dies between the two asks the
round again, whose sums may differ; so a round may stand in the log several times, and the last one
counts, with everything from there on. `verify_margin_audit` checks, entry by entry:

1. All entries are of one run, one agreement and one schedule.
2. An entry goes on from the margins and the drift of the last entry of an earlier round; the first
   round's from the loss's margin and no drift.
3. Computing the step anew from the entry's sums gives its margins and its drift, up to the rounding
   of another machine's functions (1e-6).
4. The noise is no less than the entry's sites add at least.
5. With an agreement: digest, range, step, findings and cohort are its own, and where it has a
   roster, the sites stand in it. Without one the log names them itself.

The sums in it are what the round released to the coordinator: under privacy with noise, otherwise
without. That they are what the sites sent nobody can verify afterwards.

    >>> verified = verify_margin_audit(read_audit_log(path), agreement)
    >>> verified.rounds, verified.asked_again
    ((5, 10, 15), ())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator

from fedhash.agreement import Agreement, SiteName
from fedhash.audit_log import AuditEntry
from fedhash.configuration import Settings
from fedhash.errors import AuditError
from fedhash.learning.loss import Margins
from fedhash.privacy.margin_statistics import SENSITIVITY, MarginSums
from fedhash.rounds.margin_schedule import (
    LARGEST_DRIFT,
    MarginScheduleSettings,
    MarginStep,
    margin_step,
)
from fedhash.rounds.messages import canonical_json
from fedhash.rounds.training_messages import RunId

__all__ = ["MarginEntry", "VerifiedAudit", "statistics_noise_sd", "verify_margin_audit"]

_TOLERANCE = 1e-6
_LARGEST_SUM = 1e42  # no sum of a thousand sites' float32 numbers is larger
_Sum = Annotated[float, Field(ge=-_LARGEST_SUM, le=_LARGEST_SUM)]
_Sums = Annotated[tuple[_Sum, ...], Field(min_length=1, max_length=1000)]
_Margin = Annotated[float, Field(ge=0, le=2)]
_Margins = Annotated[tuple[_Margin, ...], Field(min_length=1, max_length=1000)]
_Drift = Annotated[float, Field(ge=0, le=LARGEST_DRIFT)]


class MarginEntry(Settings):
    """One step of a schedule; an entry's content is its JSON form.

    Attributes:
        kind: margin_step.
        run_id: The run.
        agreement_digest: Of the consortium's agreement.
        round_number: The round whose replies held the statistics.
        sites: Those that counted in it, sorted.
        noise_sd: Standard deviation of the noise in each of the sums over the sites, with that of
            rounding to a ring.
        patients: The summed statistics, as `fedhash.privacy.margin_statistics.MarginSums` names
            them; one number a finding in each.
        slack: See `patients`.
        squared_slack: See `patients`.
        site_means: See `patients`.
        schedule: The round file's.
        start: The loss's margin.
        margin_range: The agreement's.
        margins_before: Of the round.
        margins: From the next round on.
        drift_before: Of the round.
        drift: From the next round on.
    """

    kind: Literal["margin_step"] = "margin_step"
    run_id: RunId
    agreement_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    round_number: int = Field(ge=1, le=100_000)
    sites: tuple[SiteName, ...] = Field(min_length=1, max_length=1000)
    noise_sd: float = Field(ge=0, le=_LARGEST_SUM)
    patients: _Sums
    slack: _Sums
    squared_slack: _Sums
    site_means: _Sums
    schedule: MarginScheduleSettings
    start: _Margin
    margin_range: tuple[_Margin, _Margin]
    margins_before: _Margins
    margins: _Margins
    drift_before: _Drift
    drift: _Drift

    @field_validator("sites")
    @classmethod
    def _sorted_and_unique(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        if list(sites) != sorted(set(sites)):
            raise ValueError("sites must be sorted and each named once")
        return sites

    @field_validator("margin_range")
    @classmethod
    def _in_order(cls, margins: tuple[float, float]) -> tuple[float, float]:
        if margins[0] > margins[1]:
            raise ValueError("the lowest margin is above the highest")
        return margins

    def step(self) -> MarginStep:
        """The step, computed from the entry's sums.

        Raises:
            AuditError: The sums are not of as many findings as the margins.
        """
        columns = (self.patients, self.slack, self.squared_slack, self.site_means)
        if {len(self.margins_before)} != {len(each) for each in (*columns, self.margins)}:
            raise AuditError(f"round {self.round_number}: sums and margins differ in length")
        return margin_step(
            self.schedule,
            MarginSums(*(np.array(each) for each in columns)),
            noise_sd=self.noise_sd,
            mu=np.array(self.margins_before, np.float32),
            drift=self.drift_before,
            start=self.start,
            margin_range=self.margin_range,
        )


@dataclass(frozen=True)
class VerifiedAudit:
    """What a verified log holds.

    Attributes:
        run_id: The run; None for an empty log.
        rounds: The rounds whose steps count.
        asked_again: The rounds that stand in it more than once, or were given up for an earlier
            one that was asked again.
        entries: The entries that count, one a round.
    """

    run_id: str | None
    rounds: tuple[int, ...]
    asked_again: tuple[int, ...]
    entries: tuple[MarginEntry, ...]


def statistics_noise_sd(
    schedule: MarginScheduleSettings, sites: int, rounding_sd: float = 0.0
) -> float:
    """Standard deviation of the noise in the sums over so many sites."""
    own = (schedule.noise_multiplier or 0.0) * SENSITIVITY
    return sqrt(sites * own**2 + rounding_sd**2)


def verify_margin_audit(
    log: Sequence[AuditEntry], agreement: Agreement | None = None
) -> VerifiedAudit:
    """Check all entries of a log whose chain holds (`fedhash.audit_log.read_audit_log`).

    Args:
        log: The entries.
        agreement: What they must keep to; None takes the range that they name themselves.

    Raises:
        AuditError: An entry breaks a rule of this module.
    """
    counted: list[MarginEntry] = []
    again: set[int] = set()
    first: MarginEntry | None = None
    for each in log:
        try:
            entry = MarginEntry.model_validate_json(canonical_json(each.content))
        except ValidationError as error:
            raise _wrong(
                each, f"it is no step of a schedule ({error.errors()[0]['msg']})"
            ) from error
        first = first or entry
        if _of_run(entry) != _of_run(first):
            raise _wrong(each, "it is of another run, agreement or schedule than the first line")
        if agreement is not None:
            _check_agreement(each, entry, agreement)
        while counted and counted[-1].round_number >= entry.round_number:
            again.add(counted.pop().round_number)
        _check_step(each, entry, counted[-1] if counted else None)
        counted.append(entry)
    return VerifiedAudit(
        first.run_id if first else None,
        tuple(entry.round_number for entry in counted),
        tuple(sorted(again)),
        tuple(counted),
    )


def _of_run(entry: MarginEntry) -> tuple[object, ...]:
    """What is the same in all entries of a run."""
    fixed = (entry.run_id, entry.agreement_digest, entry.schedule, entry.start)
    return (*fixed, entry.margin_range, len(entry.margins))


def _check_agreement(each: AuditEntry, entry: MarginEntry, agreement: Agreement) -> None:
    if entry.agreement_digest != agreement.digest():
        raise _wrong(
            each,
            f"it names the agreement {entry.agreement_digest[:12]}, the given one is "
            f"{agreement.digest()[:12]}",
        )
    if (
        entry.margin_range != agreement.margin_range
        or entry.schedule.largest_step > agreement.largest_margin_step
        or len(entry.margins) != len(agreement.findings)
        or len(entry.sites) < agreement.smallest_cohort
    ):
        raise _wrong(each, "its findings, range, step or cohort are not those of the agreement")
    strangers = [site for site in entry.sites if site not in agreement.sites]
    if agreement.sites and strangers:
        raise _wrong(each, f"the agreement's sites have no {strangers[0]!r}")


def _check_step(each: AuditEntry, entry: MarginEntry, before: MarginEntry | None) -> None:
    if not entry.schedule.carries_statistics(entry.round_number):
        raise _wrong(each, f"the schedule has no step after round {entry.round_number}")
    begin = Margins.constant(len(entry.margins), entry.start).mu.tolist()
    earlier = (tuple(begin), 0.0) if before is None else (before.margins, before.drift)
    if (entry.margins_before, entry.drift_before) != earlier:
        source = "the run's start" if before is None else f"round {before.round_number}"
        raise _wrong(each, f"it does not go on from the margins and the drift of {source}")
    if entry.noise_sd < statistics_noise_sd(entry.schedule, len(entry.sites)) - _TOLERANCE:
        raise _wrong(each, f"its {len(entry.sites)} sites add more noise than {entry.noise_sd:g}")
    try:
        step = entry.step()
    except AuditError as error:
        raise _wrong(each, str(error)) from error
    if not (
        np.allclose(step.mu, entry.margins, rtol=0, atol=_TOLERANCE)
        and abs(step.drift - entry.drift) <= _TOLERANCE
    ):
        raise _wrong(each, "its sums give other margins or another drift")


def _wrong(entry: AuditEntry, found: str) -> AuditError:
    return AuditError(
        f"line {entry.number} is no step that this schedule takes: {found}; the chain of hashes "
        "holds, so whoever wrote the log wrote this"
    )
