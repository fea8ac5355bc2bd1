"""`fedhash-sim audit canary`: how much of single patients does one private run give away?

>>> fedhash-sim audit canary --noise-multiplier 1.2 --sampling-rate 0.2 --steps 40
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedhash_sim.terminal import AsJson, err_console, print_json, print_table, told

if TYPE_CHECKING:
    from fedhash.evaluation.canary import CanaryAudit

__all__ = ["canary"]

_BINS = 40


def canary(
    noise_multiplier: Annotated[
        float, typer.Option(min=0, max=1e6, help="sigma over the clipping norm; 0 adds no noise.")
    ] = 1.6,
    sampling_rate: Annotated[
        float, typer.Option(min=1e-9, max=1, help="Of a patient in a step; 1 takes all.")
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Of the run.")] = 20,
    clip_norm: Annotated[
        float, typer.Option(min=1e-6, max=1, help="C, the longest gradient of a patient.")
    ] = 1.0,
    delta: Annotated[float, typer.Option(help="Of the claim, and of the bound.")] = 1e-5,
    canaries: Annotated[
        int, typer.Option(min=100, max=5000, help="Patients whose part is a coin's choice.")
    ] = 2000,
    patients: Annotated[
        int, typer.Option(min=0, max=10_000, help="Patients who take part for certain.")
    ] = 200,
    shared_by: Annotated[
        int | None,
        typer.Option(
            min=3,
            max=1000,
            metavar="SITES",
            help="Audit noise that so many sites share: all patients in every step.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the coins, patients and noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Draw a plot into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Guess who took part in one run of DP-SGD, and bound its epsilon from below.

    Exit code 1: the bound exceeds the epsilon that the run claims.
    """
    with told():
        from fedhash.errors import PrivacyError
        from fedhash.evaluation.canary import NoNoise, audit_site_dp_sgd
        from fedhash.evaluation.canary_shared_noise import audit_shared_noise
        from fedhash.privacy.events import SMALLEST_NOISE_MULTIPLIER
        from fedhash.privacy.settings import DistributedPrivacySettings, SitePrivacySettings
        from fedhash_sim.run_folder import explained

        for option, value in (
            ("--noise-multiplier", noise_multiplier),
            ("--sampling-rate", sampling_rate),
            ("--clip-norm", clip_norm),
        ):
            if math.isnan(value):  # which no comparison with a bound refuses
                raise PrivacyError(f"{option} is no number; give one, or leave it out")
        if noise_multiplier == 0 and shared_by is not None:
            raise typer.BadParameter(
                "--noise-multiplier 0 with --shared-by: shares of no noise are no discrete "
                "Gaussians, and no site would take part; leave out --shared-by"
            )
        if 0 < noise_multiplier < SMALLEST_NOISE_MULTIPLIER:
            raise typer.BadParameter(
                f"--noise-multiplier {noise_multiplier:g} is below the smallest that a round may "
                f"have, {SMALLEST_NOISE_MULTIPLIER:g}; give that, or 0 for no noise at all"
            )
        privacy = SitePrivacySettings(
            mode="site",
            clip_norm=clip_norm,
            # without noise it only fills the field, for NoNoise replaces it and nothing is claimed
            noise_multiplier=noise_multiplier or SMALLEST_NOISE_MULTIPLIER,
            sampling_rate=sampling_rate,
        )
        of_run = {"steps": steps, "canaries": canaries, "patients": patients, "seed": seed}
        if shared_by is None:
            noise = None if noise_multiplier else NoNoise(seed, "canary", "samples")
            found = audit_site_dp_sgd(privacy, delta=delta, noise=noise, **of_run)
        else:
            shared = DistributedPrivacySettings(
                mode="distributed",
                clip_norm=clip_norm,
                noise_multiplier=privacy.noise_multiplier,
                expected_patients=canaries + patients,
            )
            found = audit_shared_noise(shared, delta=delta, sites=shared_by, **of_run)
        if out is not None:
            with explained(out):
                _draw(found, out)
        if as_json:
            print_json(found.as_json())
        else:
            _print(found)
        if not found.holds:
            err_console.print("[bold red]The run leaks more than it claims.[/]")
            raise typer.Exit(1)


def _claimed(found: CanaryAudit) -> str:
    """The claim in words."""
    return (
        "none, there is no noise"
        if math.isinf(found.claimed_epsilon)
        else f"{found.claimed_epsilon:.2f}"
    )


def _print(found: CanaryAudit) -> None:
    from fedhash.evaluation.canary import CONFIDENCE

    table = Table(
        title=f"One run with {len(found.scores)} canaries, delta {found.delta:g}",
        title_justify="left",
        title_style="bold",
        show_header=False,
    )
    best = found.best
    bound = f"{best.epsilon:.2f}"
    table.add_row("claimed epsilon", _claimed(found))
    table.add_row(f"lower bound at {CONFIDENCE:.0%}", bound if found.holds else f"[red]{bound}[/]")
    table.add_row("right guesses", f"{best.right} of {best.guesses}")
    table.add_row("most that this audit can show", f"{found.ceiling:.2f}")
    if math.isfinite(found.claimed_epsilon):
        table.add_row("claim", "not refuted" if found.holds else "[red]refuted[/]")
    print_table(table)


def _draw(found: CanaryAudit, path: Path) -> None:
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    from fedhash_sim.plots import PLOT_STYLE

    ordered = np.sort(found.scores)
    half = found.best.guesses // 2
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axis = figure.subplots()
        bins = np.histogram_bin_edges(found.scores, _BINS).tolist()
        for part, colour, label in (
            (found.taken, "#0072B2", "took part"),
            (~found.taken, "#E69F00", "did not"),
        ):
            axis.hist(found.scores[part], bins, color=colour, alpha=0.6, label=label)
        below = axis.axvline(ordered[half - 1], color="#6b7280", linestyle="--")
        below.set_label("guessed: below out, above in")
        axis.axvline(ordered[-half], color="#6b7280", linestyle="--")
        axis.set_xlabel("score: noised gradients along the canary's own")
        axis.set_ylabel("canaries")
        figure.suptitle(f"epsilon: claimed {_claimed(found)}, at least {found.best.epsilon:.2f}")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        figure.savefig(path, format="png", bbox_inches="tight")
