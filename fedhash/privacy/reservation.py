"""A round's private steps as events of the site's ledger: what `SitePrivacy.reserve` calls.

1. Private steps are written down before a patient is looked at, and refused above a cap.
2. The ledger only grows. Steps that are asked for again, because the coordinator or the site fell
   over, draw new noise and stand in it twice: once too often if the first never ran or never left
   the site, and never too seldom. Nothing is taken back.
3. Steps that take every patient (q = 1) are full-batch steps, whose epsilon is smaller and exact.
4. A round's steps and its margin statistics are two events, written together or not at all.

The fingerprint of a data set says which data an event was about, to whoever holds that data. It is
SHA-256 over what is trained on, each study in the order of study and patient ids, whatever the
order of the manifest:

    the text "fedhash data set 1"; canonical JSON of the number of findings and, by modality, of
    the shape of an input; then for each study canonical JSON of [study id, patient id], its labels
    as int8, and for each modality in the order of names one byte for "has it" and, if it does, its
    prepared input as little-endian float32; JSON texts end with a line feed.

It stays in the site's ledger: whoever knows all studies but one could test a guess against it.

    >>> reserve = partial(
    ...     reserve_model_update, Path("ledger.sqlite"), [terms], data_fingerprint(studies))
    >>> reserve("run-7", 1, PrivateSteps(noise_multiplier=1.1, sampling_rate=0.05, steps=20))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from fedhash import __version__
from fedhash.errors import PrivacyError
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy.events import (
    DistributedGaussianStep,
    FullBatchGaussianSteps,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from fedhash.privacy.ledger import Ledger, LedgerEntry
from fedhash.privacy.private_steps import PrivateSteps, SharedNoiseStep
from fedhash.privacy.terms import PrivacyTerms

__all__ = ["data_fingerprint", "margin_release", "model_update", "reserve_model_update"]


def reserve_model_update(
    ledger: Path,
    limits: Sequence[PrivacyTerms],
    fingerprint: str,
    run_id: str,
    round_number: int,
    steps: PrivateSteps | SharedNoiseStep,
) -> tuple[LedgerEntry, ...]:
    """Write down what a round is about to release.

    Args:
        ledger: The site's; made at need, and open no longer than the call.
        limits: The caps that bind the site.
        fingerprint: `data_fingerprint` of the site's studies.
        run_id: The run.
        round_number: Its round.
        steps: All steps of the round, and its margin statistics.

    Raises:
        BudgetError: A cap forbids them. Nothing was written.
        LedgerError: The ledger does not verify. Nothing was written.
        PrivacyError: There is no limit, or the steps are outside what an event can say.
        StorageError: The operating system refuses the ledger.
    """
    events = [model_update(fingerprint, run_id, round_number, steps)]
    if steps.statistics_noise_multiplier is not None:
        sigma = steps.statistics_noise_multiplier
        events.append(margin_release(fingerprint, run_id, round_number, sigma))
    with Ledger(ledger, limits) as opened:
        return opened.reserve_together(events)


def model_update(
    fingerprint: str, run_id: str, round_number: int, steps: PrivateSteps | SharedNoiseStep
) -> PrivacyEvent:
    """The event of a round's steps.

    Raises:
        PrivacyError: The steps are outside what an event can say.
    """
    about = {
        "data_fingerprint": fingerprint,
        "code_version": __version__,
        "run_id": run_id,
        "round_number": round_number,
        "purpose": "model update",
    }
    try:
        if isinstance(steps, SharedNoiseStep):
            mechanism = asdict(steps)
            del mechanism["statistics_noise_multiplier"]  # an event of its own
            return DistributedGaussianStep.model_validate(about | mechanism)
        mechanism = {"noise_multiplier": steps.noise_multiplier, "steps": steps.steps}
        if steps.sampling_rate == 1:
            return FullBatchGaussianSteps.model_validate(about | mechanism)
        sampling = {"sampling_rate": steps.sampling_rate}
        return PoissonGaussianSteps.model_validate(about | mechanism | sampling)
    except ValidationError as error:
        raise PrivacyError(
            f"round {round_number} of {run_id!r} asks for {steps}, which no ledger can hold "
            f"({error.errors()[0]['msg']}); ask for steps within the bounds of "
            "fedhash.privacy.events"
        ) from error


def margin_release(
    fingerprint: str, run_id: str, round_number: int, noise_multiplier: float
) -> GaussianRelease:
    """The event of a round's margin statistics; the round file bounds their noise as events do."""
    return GaussianRelease(
        data_fingerprint=fingerprint,
        code_version=__version__,
        run_id=run_id,
        round_number=round_number,
        purpose="margin statistics",
        noise_multiplier=noise_multiplier,
    )


def data_fingerprint(studies: PreparedStudies) -> str:
    """SHA-256 of a site's training data, 64 hex digits; the module says of what exactly."""
    modalities = sorted(studies.inputs)
    shapes = {name: list(studies.inputs[name].shape[1:]) for name in modalities}
    hashed = hashlib.sha256(b"fedhash data set 1")
    hashed.update(_json_line([studies.labels.shape[1], shapes]))
    labels = studies.labels.numpy()
    present = {name: studies.present[name].tolist() for name in modalities}
    inputs = {name: studies.inputs[name].numpy() for name in modalities}
    for ids, row in sorted(zip(_ids(studies), range(len(studies)), strict=True)):
        hashed.update(_json_line(ids))
        hashed.update(labels[row].tobytes())
        for name in modalities:
            hashed.update(bytes([present[name][row]]))
            if present[name][row]:
                hashed.update(inputs[name][row].astype("<f4").tobytes())
    return hashed.hexdigest()


def _ids(studies: PreparedStudies) -> list[tuple[str, str]]:
    return list(zip(studies.study_ids, studies.patient_ids, strict=True))


def _json_line(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
