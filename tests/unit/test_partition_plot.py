"""The picture of who holds what, as large as the report shows it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedhash_sim.partition_plot import draw_partition

FINDINGS = [f"finding_{number}" for number in range(14)]


def tables(sites: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Site n has n + 1 patients of finding n % 14, two studies each; odd ones have no report."""
    names = [f"site-{number:02d}" for number in range(sites)]
    partition = pd.DataFrame(
        [
            (seed, site, finding, (1 + n) * (n % 14 == k) * (1 + seed))
            for seed in (0, 1)
            for n, site in enumerate(names)
            for k, finding in enumerate(FINDINGS)
        ],
        columns=["seed", "site", "finding", "patients"],
    )
    holdings = pd.DataFrame(
        [
            (seed, site, modality, (1 + n) * has, 2 * (1 + n) * has)
            for seed in (0, 1)
            for n, site in enumerate(names)
            for modality, has in (("(any)", 1), ("image", 1), ("report", 1 - n % 2))
        ],
        columns=["seed", "site", "modality", "patients", "studies"],
    )
    return partition, holdings


def test_a_row_a_site_has_its_patients_studies_and_modalities() -> None:
    figure = draw_partition(*tables(4))
    findings, amounts, modalities = figure.axes
    assert [text.get_text() for text in findings.texts] == ["1", "2", "3", "4"]
    assert [label.get_text() for label in findings.get_yticklabels()] == [
        "site-00",
        "site-01",
        "site-02",
        "site-03",
    ]
    widths = {each.get_label(): [bar.get_width() for bar in each] for each in amounts.containers}
    assert widths == {"studies": [2, 4, 6, 8], "patients": [1, 2, 3, 4]}
    (shares,) = (image.get_array() for image in modalities.images)
    np.testing.assert_array_equal(shares, [[1, 1], [1, 0], [1, 1], [1, 0]])
    assert findings.get_ylim() == (3.5, -0.5), "the first site on top"


def test_the_names_of_many_sites_can_be_read() -> None:
    figure = draw_partition(*tables(100))
    FigureCanvasAgg(figure).draw()
    findings = figure.axes[0]
    boxes = [label.get_window_extent() for label in findings.get_yticklabels()]
    assert len(boxes) == 100
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes)), (
        "names lie on each other"
    )
    assert figure.get_figheight() < 15
    assert min(label.get_fontsize() for label in findings.get_yticklabels()) >= 7
