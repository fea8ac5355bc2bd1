"""Rounds whose noise the sites add together: what is sent, reserved, refused and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import secure_sites
from distributed_sites import (
    ONE_STEP,
    PRIVACY,
    SETTINGS,
    distributed_site,
    rate_of_round,
    sum_by_hand,
    sum_of_round,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import chi2
from secure_sites import CheatingCoordinator, Federation
from small_federation import (
    AGREEMENT,
    SECURE_AGREEMENT,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    run_plan,
)

from fedhash.errors import DataError, RefusedError
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.learning.settings import LossSettings
from fedhash.privacy import (
    AgreedPrivacy,
    DistributedGaussianStep,
    PrivacyTerms,
    epsilon,
    read_ledger,
)
from fedhash.privacy.discrete_gaussian import discrete_gaussians
from fedhash.privacy.noise import SecureNoise
from fedhash.privacy.noise_share import noise_share
from fedhash.privacy.private_steps import PrivateSteps, SharedNoiseStep
from fedhash.privacy.reservation import model_update, reserve_model_update
from fedhash.privacy.settings import NoPrivacySettings, SitePrivacySettings
from fedhash.rounds.aggregation import Answers, Contribution, PlainSiteAggregation, Stage
from fedhash.rounds.run import run_rounds
from fedhash.rounds.settings import RoundSettings, check_privacy, check_round, private_steps
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.training_messages import Refusal, TrainRequest
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.fixed_point import FixedPoint
from fedhash.secagg.floors import SecureCohort, secure_cohort
from fedhash.secagg.messages import MaskRequest, ShareRequest
from fedhash_sim.engines.inprocess import InProcessEngine

FALSE_ALARM = 1e-9
Reserved = tuple[str, int, SharedNoiseStep]


class Silence:
    """A source whose noise is nothing, so that sums can be seen."""

    secure = False

    def gaussians(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def uniforms(self, count: int) -> np.ndarray:
        return np.full(count, 0.5)


def train_request(settings: RoundSettings = SETTINGS) -> TrainRequest:
    return TrainRequest(
        plan=run_plan(settings),
        round_number=1,
        cohort=SITES,
        counted={},
        model=model_and_layout()[0],
        margins=new_coordinator(settings).state.margins,
        control=None,
    )


def contribution(agent: SiteAgent, asked: TrainRequest | None = None) -> Contribution:
    return agent.contribute(asked or train_request(), secure_cohort(3, SECURE_AGREEMENT))


def encoding_of(settings: RoundSettings = SETTINGS) -> FixedPoint:
    size = model_and_layout()[1].size
    return round_encoding(
        run_plan(settings), {"update": size, "loss": 1}, SECURE_AGREEMENT.secure_aggregation
    )


def updates(settings: RoundSettings, agents: Sequence[SiteAgent]) -> list[np.ndarray]:
    """What each round of a run adds to the model, by the plain coordinator optimiser."""
    coordinator = new_coordinator(settings)
    models = [coordinator.state.model]
    run_rounds(
        coordinator,
        InProcessEngine(agents),
        on_round=lambda record: models.append(coordinator.state.model),
    )
    assert [record.failure for record in coordinator.state.records] == [None] * settings.rounds
    return [after - before for before, after in pairwise(models)]


def test_a_site_sends_minus_its_clipped_sum_and_no_loss() -> None:
    sent = contribution(distributed_site("site-2"))
    expected = -sum_by_hand("site-2", model_and_layout()[0])
    assert sent.vector.dtype == np.float64
    np.testing.assert_allclose(sent.vector[:-1], expected, atol=1e-6)
    assert np.linalg.norm(expected) > 0.2
    assert (sent.vector[-1], sent.weight) == (0, 1)


def test_the_decoded_sum_is_the_plain_sum_where_the_noise_is_nothing() -> None:
    agents = [distributed_site(site, lambda *_: Silence()) for site in SITES]
    vector = model_and_layout()[0]
    (found, _) = updates(SETTINGS, agents)
    expected = -0.5 / 12 * sum(sum_by_hand(site, vector) for site in SITES)
    step = encoding_of().step(encoding_of().blocks[0])
    np.testing.assert_allclose(found, expected, atol=3 * 0.5 / 12 * step + 1e-7)
    assert np.abs(expected).max() > 1e-3


def test_two_rounds_are_those_of_the_reference_to_the_last_integer() -> None:
    models = [model_and_layout()[0]]
    for number, update in enumerate(updates(SETTINGS, list(map(distributed_site, SITES))), 1):
        expected = rate_of_round(SETTINGS, number) / 12 * sum_of_round(models[-1], number)
        np.testing.assert_allclose(update, expected, atol=3e-6 * np.abs(expected).max())
        models.append(models[-1] + update)


def test_the_noise_of_the_sum_has_the_variance_of_all_shares() -> None:
    """Real noise: four rounds at one model (a tiny learning rate), summed up coordinate-wise."""
    settings = SETTINGS.model_copy(
        update={
            "rounds": 4,
            "learning": SETTINGS.learning.model_copy(
                update={"learning_rate": 1e-6, "schedule": "constant"}
            ),
        }
    )
    agents = [distributed_site(site, lambda *_: SecureNoise()) for site in SITES]
    coordinator = new_coordinator(settings)
    totals: list[np.ndarray] = []
    following = coordinator._following

    def noted(asked: TrainRequest, aggregate: object, counted: Sequence[str]) -> object:
        totals.append(aggregate.total[:-1])
        return following(asked, aggregate, counted)

    coordinator._following = noted
    run_rounds(coordinator, InProcessEngine(agents))
    plain = -sum(sum_by_hand(site, model_and_layout()[0]) for site in SITES)
    share = noise_share(PRIVACY, encoding_of(), secure_cohort(3, SECURE_AGREEMENT))
    step = encoding_of().step(encoding_of().blocks[0])
    sd = share.share_sigma_integer_steps * math.sqrt(3) * step
    scaled = (np.stack(totals) - plain) / sd
    assert chi2.ppf(FALSE_ALARM, scaled.size) < (scaled**2).sum()
    assert (scaled**2).sum() < chi2.isf(FALSE_ALARM, scaled.size)
    # of which two of three are guaranteed, over C and a little for rounding
    assert sd * math.sqrt(2 / 3) > PRIVACY.noise_multiplier * PRIVACY.clip_norm


def test_the_coordinator_s_optimiser_takes_the_step_over_the_expected_patients() -> None:
    optimiser = CoordinatorOptimiserSettings(name="fedavgm", momentum=0.5)
    changes = {"coordinator_optimiser": optimiser}
    agents = [distributed_site(site, lambda *_: Silence()) for site in SITES]
    first, second = updates(SETTINGS.model_copy(update=changes), agents)
    agents = [distributed_site(site, lambda *_: Silence()) for site in SITES]
    plain_first, plain_second = updates(SETTINGS, agents)
    np.testing.assert_allclose(first, plain_first, atol=1e-6)
    np.testing.assert_allclose(second, plain_second + 0.5 * first, atol=1e-6)
    many = PRIVACY.model_copy(update={"expected_patients": 120})
    agents = [distributed_site(site, lambda *_: Silence()) for site in SITES]
    tenth, _ = updates(SETTINGS.model_copy(update={"privacy": many}), agents)
    np.testing.assert_allclose(10 * tenth, plain_first, atol=1e-5)


def test_the_step_is_reserved_before_a_patient_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger, fingerprint = tmp_path / "ledger.sqlite", "0f" * 32
    step = noise_share(PRIVACY, encoding_of(), secure_cohort(3, SECURE_AGREEMENT))
    event = model_update(fingerprint, "run-1", 1, step)
    terms = PrivacyTerms(epsilon_cap=epsilon([event], 1e-5), delta=1e-5)
    reserve = partial(reserve_model_update, ledger, [terms], fingerprint)
    agent = distributed_site("site-0", reserve=reserve)
    contribution(agent)
    assert [entry.event for entry in read_ledger(ledger)] == [event]
    assert isinstance(event, DistributedGaussianStep)

    def looked_at(*_: object) -> None:
        raise AssertionError("a patient was looked at")

    monkeypatch.setattr("fedhash.privacy.distributed.rows_by_patient", looked_at)
    with pytest.raises(RefusedError, match="would bring epsilon") as refused:
        contribution(agent, replace(train_request(), round_number=2))
    assert refused.value.reason == "epsilon_cap"
    assert len(read_ledger(ledger)) == 1


def test_studies_are_checked_after_the_step_is_reserved() -> None:
    """Whether a patient has a label is read of the patient."""
    reserved: list[Reserved] = []
    agent = distributed_site("site-0", reserve=lambda *step: reserved.append(step))
    agent._trainer._studies.labels[1] = 0
    with pytest.raises(DataError, match="has no positive finding"):
        contribution(agent)
    assert len(reserved) == 1


def test_a_step_asked_again_is_reserved_again_with_other_noise() -> None:
    reserved: list[Reserved] = []
    agent = distributed_site(
        "site-0", lambda *_: SecureNoise(), lambda *step: reserved.append(step)
    )
    first, again = contribution(agent), contribution(agent)
    assert [number for _, number, _ in reserved] == [1, 1]
    assert first.noise is not None
    assert again.noise is not None
    assert (first.noise != again.noise).mean() > 0.99
    np.testing.assert_array_equal(first.vector, again.vector)


def test_a_patient_with_many_studies_gives_one() -> None:
    reserved: list[Reserved] = []
    agent = distributed_site("site-2", lambda *_: Silence(), lambda *step: reserved.append(step))
    studies = agent._trainer._studies
    agent._trainer._studies = replace(studies, patient_ids=("one",) * len(studies))
    sent = contribution(agent).vector[:-1]
    middle = agent._trainer._studies.select([len(studies) // 2])
    agent._trainer._studies = middle
    np.testing.assert_allclose(sent, contribution(agent).vector[:-1], atol=1e-7)
    assert np.linalg.norm(sent) <= PRIVACY.clip_norm


def test_a_site_takes_part_in_the_modes_that_it_allows() -> None:
    reserved: list[Reserved] = []
    agent = distributed_site("site-0", reserve=lambda *s: reserved.append(s), modes=("site",))
    with pytest.raises(RefusedError, match=r"mode site alone.* by privacy.modes") as refused:
        contribution(agent)
    assert refused.value.reason == "mode_not_allowed"
    both = distributed_site("site-0", modes=("site", "distributed"))
    assert contribution(both).noise is not None
    agent._trainer._privacy = None
    with pytest.raises(RefusedError) as refused:
        contribution(agent)
    assert refused.value.reason == "no_privacy_here"
    asked = train_request(round_settings(aggregation="secure", learning=ONE_STEP))
    with pytest.raises(RefusedError, match="site or distributed alone") as refused:
        contribution(both, asked)
    assert refused.value.reason == "not_private"
    assert reserved == []


def test_a_step_without_a_secure_sum_is_refused() -> None:
    agent = distributed_site("site-0")
    with pytest.raises(RefusedError, match="needs a secure sum") as refused:
        agent.contribute(train_request(), None)
    assert refused.value.reason == "unsound_privacy"
    agent._aggregation = PlainSiteAggregation()
    answer = agent.handle(train_request().to_message())
    assert Refusal.from_message(answer).reason == "other_aggregation"


def test_a_cohort_that_guarantees_nothing_is_refused_before_it_costs() -> None:
    reserved: list[Reserved] = []
    agent = distributed_site("site-0", reserve=lambda *s: reserved.append(s))
    nobody = SecureCohort(sites=3, colluding=3, fewest_honest=0)
    with pytest.raises(RefusedError, match="of 3 sites 3 may collude") as refused:
        agent.contribute(train_request(), nobody)
    assert refused.value.reason == "unsound_privacy"
    assert reserved == []


def changed(**learning: object) -> RoundSettings:
    whole = {**ONE_STEP, **learning}
    return round_settings(
        aggregation="secure", weighting="uniform", privacy=PRIVACY, learning=whole
    )


@pytest.mark.parametrize(
    ("settings", "key", "problem"),
    [
        (changed(local_steps=2), "learning.local_steps", "set it to 1"),
        (changed(optimiser="adamw"), "learning.optimiser", "set it to sgd, and coordinator_optim"),
        (changed(momentum=0.5), "learning.momentum", "set it to 0.0, and coordinator_optimiser"),
        (changed(weight_decay=1e-4), "learning.weight_decay", "set it to 0.0"),
        (changed(control_variates=True), "learning.control_variates", "set it to false"),
        (changed(proximal_weight=0.1), "learning.proximal_weight", "set it to 0.0"),
        (changed(gradient_clip_norm=1.0), "learning.gradient_clip_norm", "set it to null"),
        (
            SETTINGS.model_copy(update={"aggregation": "plain"}),
            "aggregation",
            "with that site's share of the noise alone; set aggregation: secure",
        ),
        (SETTINGS.model_copy(update={"weighting": "patients"}), "weighting", "weighting: uniform"),
        (
            SETTINGS.model_copy(update={"loss": LossSettings(name="contrastive")}),
            "loss.name",
            "use a sum of patient terms",
        ),
    ],
)
def test_what_a_shared_step_cannot_be_is_told_with_the_remedy(
    settings: RoundSettings, key: str, problem: str
) -> None:
    ((found, message),) = check_privacy(settings, SECURE_AGREEMENT)
    assert ".".join(map(str, found)) == key
    assert problem in message
    asked = replace(train_request(), plan=run_plan(settings))
    with pytest.raises(RefusedError) as refused:
        distributed_site("site-0")._check_privacy(asked)
    assert refused.value.reason == "unsound_privacy"


def test_a_shared_step_needs_the_agreement_s_terms_and_no_epochs() -> None:
    without = SECURE_AGREEMENT.model_copy(update={"privacy": None})
    ((key, message),) = check_privacy(SETTINGS, without)
    assert key == ("privacy", "mode")
    assert message.startswith("privacy.mode is distributed, and the agreement has no section")
    epochs = check_privacy(changed(local_steps=None, local_epochs=1), SECURE_AGREEMENT)
    assert [key[-1] for key, _ in epochs] == ["local_epochs", "local_steps"]
    assert check_privacy(SETTINGS, SECURE_AGREEMENT) == []


def test_a_mode_that_was_not_agreed_upon_is_refused_at_the_site_as_well() -> None:
    terms = AgreedPrivacy(epsilon_cap=20.0, delta=1e-5)
    own = SECURE_AGREEMENT.model_copy(update={"privacy": terms})
    ((key, message),) = check_round(SETTINGS, own)
    assert key == ("privacy", "mode")
    assert "the agreement's privacy.modes has site alone" in message
    assert "agree on privacy.modes: [site, distributed], or set privacy.mode: site" in message
    agent = distributed_site("site-0")
    agent._agreement = own
    with pytest.raises(RefusedError, match="modes has site alone") as refused:
        agent._check_privacy(train_request())
    assert refused.value.reason == "unsound_privacy"
    shared = terms.model_copy(update={"modes": ("distributed",)})
    only = SECURE_AGREEMENT.model_copy(update={"privacy": shared})
    assert check_privacy(SETTINGS, only) == []
    private = round_settings(
        weighting="uniform",
        privacy=SitePrivacySettings(
            mode="site", clip_norm=1.0, noise_multiplier=9.0, sampling_rate=0.1
        ),
    )
    ((_, message),) = check_privacy(private, only)
    assert "privacy.modes has distributed alone" in message


def test_a_planned_round_costs_what_the_ledger_takes() -> None:
    planned = private_steps(SETTINGS)
    assert planned == PrivateSteps(1.5, 1.0, 1)
    step = noise_share(PRIVACY, encoding_of(), secure_cohort(3, SECURE_AGREEMENT))
    events = [model_update("0f" * 32, "run-1", number, step) for number in (1, 2)]
    foreseen = [model_update("0f" * 32, "run-1", number, planned) for number in (1, 2)]
    assert epsilon(events, 1e-5) == pytest.approx(epsilon(foreseen, 1e-5), rel=1e-9)
    cap = epsilon(foreseen, 1e-5) * 0.99
    terms = AgreedPrivacy(epsilon_cap=cap, delta=1e-5, modes=("distributed",))
    tight = SECURE_AGREEMENT.model_copy(update={"privacy": terms})
    ((key, message),) = check_round(SETTINGS, tight)
    assert key == ("privacy", "noise_multiplier")
    assert message.endswith("raise privacy.noise_multiplier, or lower rounds")


# The protocol alone: sites without any training, whose vectors are nothing but noise.

SIZE = 2000


@pytest.fixture
def shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of `secure_sites` become rounds whose noise is shared, of a model of `SIZE`."""
    plain = secure_sites.plan_of

    def plan_of(agreement: object, rounds: int = 3) -> object:
        settings = SETTINGS.model_copy(update={"rounds": rounds})
        return plain(agreement, rounds).model_copy(update={"settings": settings})

    monkeypatch.setattr(secure_sites, "plan_of", plan_of)
    monkeypatch.setattr(secure_sites, "MODEL_SIZE", SIZE)


class NoisySite(secure_sites.Site):
    """Adds what its cohort asks of it, and remembers the cohort."""

    cohort: SecureCohort | None = None

    def _contribute(self, request: TrainRequest, cohort: SecureCohort) -> Contribution:
        super()._contribute(request, cohort)
        self.cohort = cohort
        share = share_of(request, cohort)
        noise = discrete_gaussians(SecureNoise(), share.share_sigma_integer_steps, SIZE)
        return Contribution(np.zeros(SIZE + 1), 1.0, noise)


def share_of(request: TrainRequest, cohort: SecureCohort) -> SharedNoiseStep:
    encoding = round_encoding(request.plan, request.blocks, secure_sites.TERMS)
    return noise_share(PRIVACY, encoding, cohort)


def make_noisy(federation: Federation) -> None:
    for name, site in federation.sites.items():
        federation.sites[name] = NoisySite(name, site.aggregation, site.contribution)


@pytest.mark.usefixtures("shared_noise")
@hypothesis_settings(max_examples=8)
@given(lost=st.sets(st.integers(0, 7), max_size=2))
def test_a_sum_that_lost_sites_keeps_the_guaranteed_noise(lost: set[int]) -> None:
    federation = Federation.of(8)
    make_noisy(federation)
    gone = {f"site-{place:02}" for place in lost}

    def deliver(stage: Stage) -> Answers:
        if stage.name != "mask":
            return federation.ask(stage)
        return federation.ask(
            Stage(stage.name, {name: m for name, m in stage.requests.items() if name not in gone})
        )

    found = federation.round(1, deliver)
    assert set(found.left_out) == gone
    assert "clipped_values" not in found.facts
    request = secure_sites.train_request(federation.agreement)
    cohort = secure_cohort(8, federation.agreement)
    assert {site.cohort for site in federation.sites.values()} - {None} == {cohort}
    share = share_of(request, cohort)
    encoding = round_encoding(request.plan, request.blocks, secure_sites.TERMS)
    integers = found.total[:-1] / encoding.step(encoding.blocks[0])
    survivors = 8 - len(gone)
    scaled = integers / (share.share_sigma_integer_steps * math.sqrt(survivors))
    assert chi2.ppf(FALSE_ALARM, SIZE) < (scaled**2).sum() < chi2.isf(FALSE_ALARM, SIZE)
    kept = share.sum_noise_multiplier * math.sqrt((survivors - cohort.colluding) / 8)
    assert kept >= share.guaranteed_noise_multiplier >= PRIVACY.noise_multiplier


@pytest.mark.usefixtures("shared_noise")
def test_a_sum_of_too_few_sites_is_opened_for_nobody() -> None:
    federation = Federation.of(8)
    make_noisy(federation)
    cheat = CheatingCoordinator(8)
    cheat.federation = federation
    cheat.agreement = federation.agreement
    roster, request = cheat.up_to_share()
    for site in cheat.sites:
        assert cheat.send(site, request.to_message()).kind == "masked"
    ask = cheat.unmask_request(roster, cheat.sites[:5]).to_message()
    assert cheat.refusal("site-00", ask) == "too_few_survivors"


@pytest.mark.usefixtures("shared_noise")
def test_a_smaller_roster_is_refused_below_the_floor_and_adds_more_noise_above_it() -> None:
    shares = {}
    for sites in (3, 4, 5, 6):
        cheat = CheatingCoordinator(6, smallest_cohort=4)
        make_noisy(cheat.federation)
        keys = {site: keys for site, keys in cheat.advertise().items() if site < f"site-{sites:02}"}
        if sites < 4:
            ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
            assert cheat.refusal("site-00", ask) == "bad_cohort"
            assert cheat.federation.sites["site-00"].trained == 0
            continue
        _, request = cheat.up_to_share(keys)
        assert cheat.send("site-00", request.to_message()).kind == "masked"
        cohort = cheat.federation.sites["site-00"].cohort
        assert cohort is not None
        assert cohort.sites == sites
        shares[sites] = share_of(request.train, cohort).share_sigma_integer_steps
    assert shares[5] > shares[6]


@pytest.mark.usefixtures("shared_noise")
@pytest.mark.parametrize("ring_bits", [16, 20, 24, 32])
def test_noise_is_added_modulo_the_ring_and_never_clipped(ring_bits: int) -> None:
    terms = secure_sites.TERMS.model_copy(update={"ring_bits": ring_bits})
    federation = Federation.of(3, terms)
    whole, draws = 1 << ring_bits, np.random.default_rng(4)
    total = np.zeros(SIZE, np.int64)
    for site in federation.sites.values():
        noise = draws.integers(-8 * whole, 8 * whole, SIZE)
        total += noise
        site.contribution = Contribution(np.zeros(SIZE + 1), 1.0, noise)
    found = federation.round(1)
    request = secure_sites.train_request(federation.agreement)
    encoding = round_encoding(request.plan, request.blocks, terms)
    expected = (total + whole // 2) % whole - whole // 2
    step = encoding.step(encoding.blocks[0])
    np.testing.assert_allclose(found.total[:-1], expected * step, rtol=1e-12)


@pytest.mark.usefixtures("shared_noise")
@pytest.mark.parametrize(
    "noise",
    [None, lambda: np.zeros(SIZE - 1, np.int64), lambda: np.zeros(SIZE + 1, np.int64)],
)
def test_noise_that_is_missing_or_too_short_is_never_sent(
    noise: Callable[[], np.ndarray] | None,
) -> None:
    cheat = CheatingCoordinator(5)
    site = cheat.federation.sites["site-00"]
    site.contribution = Contribution(np.zeros(SIZE + 1), 1.0, None if noise is None else noise())
    _, request = cheat.up_to_share()
    assert cheat.refusal("site-00", request.to_message()) == "unsound_privacy"


def test_noise_that_nobody_asked_for_is_never_sent() -> None:
    cheat = CheatingCoordinator(5)
    site = cheat.federation.sites["site-00"]
    noise = np.ones(secure_sites.MODEL_SIZE, np.int64)
    site.contribution = replace(site.contribution, noise=noise)
    _, request = cheat.up_to_share()
    assert cheat.refusal("site-00", request.to_message()) == "unsound_privacy"


@pytest.mark.usefixtures("shared_noise")
def test_a_round_opened_before_is_not_opened_with_other_noise() -> None:
    """Two sums of the same gradients would halve the noise; the site has reserved both."""
    federation = Federation.of(5)
    make_noisy(federation)
    federation.round(1)
    coordinator = CheatingCoordinator(5)
    coordinator.federation, coordinator.agreement = federation, federation.agreement
    roster, request = coordinator.up_to_share()
    for site in coordinator.sites:
        assert coordinator.send(site, request.to_message()).kind == "masked"
    ask = coordinator.unmask_request(roster, coordinator.sites).to_message()
    assert coordinator.refusal("site-00", ask) == "opened_otherwise"
    assert federation.sites["site-00"].trained == 2


@pytest.mark.usefixtures("shared_noise")
def test_the_ring_layout_of_another_privacy_is_refused() -> None:
    """A coordinator that would have the sites clip or count as in a round without privacy."""
    cheat = CheatingCoordinator(5)
    make_noisy(cheat.federation)
    _, request = cheat.up_to_share()
    settings = request.train.plan.settings.model_copy(update={"privacy": NoPrivacySettings()})
    other = request.train.plan.model_copy(update={"settings": settings})
    digest = round_encoding(other, request.train.blocks, secure_sites.TERMS).digest()
    forged: MaskRequest = replace(request, encoding_digest=digest)
    assert cheat.refusal("site-00", forged.to_message()) == "other_layout"


def test_the_agreement_of_plain_rounds_is_not_enough() -> None:
    problems = check_round(SETTINGS, AGREEMENT)
    assert [key for key, _ in problems] == [("aggregation",)]
