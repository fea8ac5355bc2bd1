from __future__ import annotations

import numpy as np
import pytest
from small_federation import (
    AGREEMENT,
    SITES,
    PullTrainer,
    new_coordinator,
    outcomes,
    round_settings,
)

from fedhash.errors import MessageError
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.engine import SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_round
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import MemorySiteState
from fedhash_sim.engines.inprocess import InProcessEngine


def engine() -> InProcessEngine:
    return InProcessEngine(
        [
            SiteAgent(s, AGREEMENT, PullTrainer(1.0), MemorySiteState(), PlainSiteAggregation())
            for s in SITES[::-1]
        ]
    )


def test_sites_are_called_by_name_and_their_traffic_is_counted() -> None:
    sites = engine()
    record = run_round(new_coordinator(round_settings()), sites)
    assert sites.sites == SITES
    assert [(each.stage, each.site, each.outcome) for each in record.exchanges] == [
        ("train", site, "train_reply") for site in SITES
    ]
    request = next(new_coordinator(round_settings()).round(SITES)).requests["site-0"]
    for exchange in record.exchanges:
        assert exchange.request_bytes == len(request.encode())
        assert exchange.reply_bytes > 2 * 4 * PullTrainer.model_size


def test_what_the_byte_form_cannot_carry_fails_here_too() -> None:
    with pytest.raises(MessageError, match="'model' is float16"):
        outcomes(
            engine().ask(
                "train", {"site-0": Message("train", {}, {"model": np.zeros(1, "f2")})}, 1.0
            )
        )


def test_a_message_above_the_sites_limit_is_not_delivered() -> None:
    message = Message("train", {}, {"model": np.zeros(1 << 22)})
    answer = outcomes(engine().ask("train", {"site-0": message}, timeout_s=1.0))["site-0"]
    assert isinstance(answer, SiteFailure)
    assert answer.reason == "undeliverable"
    assert "the limit is" in answer.detail
