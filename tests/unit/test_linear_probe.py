from __future__ import annotations

import numpy as np
import pytest

from fedhash.evaluation.linear_probe import Probe, linear_probe


def test_a_probe_finds_what_a_line_can_tell_and_no_more() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(600, 4)).astype(np.float32)
    along, coin = outputs[:, 0] > 0, rng.random(600) < 0.5
    noisy = outputs[:, 1] + rng.normal(size=600) > 0
    labels = np.stack([along, coin, noisy], axis=1).astype(np.int8)

    def area(finding: int) -> float:
        chosen = labels[:, [finding]]
        found = linear_probe(outputs[:400], chosen[:400], outputs[400:], chosen[400:])
        assert found.macro_auroc is not None
        return found.macro_auroc

    assert area(0) > 0.99
    assert area(1) == pytest.approx(0.5, abs=0.1)
    assert area(2) == pytest.approx(0.83, abs=0.07)
    together = linear_probe(outputs[:400], labels[:400], outputs[400:], labels[400:])
    assert together.macro_auroc == pytest.approx(np.mean([area(0), area(1), area(2)]))
    assert (together.findings, together.skipped) == (3, 0)


def test_uncertain_studies_and_findings_of_one_class_have_no_part() -> None:
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(200, 2)).astype(np.float32)
    clear = (outputs[:, 0] > 0).astype(np.int8)
    uncertain = clear.copy()
    uncertain[::3] = -1
    never, unseen = np.zeros(200, np.int8), clear.copy()
    unseen[100:] = 0
    labels = np.stack([uncertain, never, unseen], axis=1)
    found = linear_probe(outputs[:100], labels[:100], outputs[100:], labels[100:])
    rest = uncertain >= 0
    alone = linear_probe(
        outputs[:100][rest[:100]],
        clear[:100][rest[:100], None],
        outputs[100:][rest[100:]],
        clear[100:][rest[100:], None],
    )
    assert (found.macro_auroc, found.findings, found.skipped) == (alone.macro_auroc, 1, 2)
    nothing = linear_probe(outputs, labels[:, [1]], outputs, labels[:, [1]])
    assert nothing == Probe(None, 0, 1)
