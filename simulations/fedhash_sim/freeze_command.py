"""`fedhash-sim freeze`: the file that a frozen tower reads, made of public studies.

>>> fedhash-sim freeze image --release runs/public/release --trained-on-public-data
...     --agreement agreement.yaml --manifest public/manifest.csv --out frozen-image.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhash_sim.terminal import AsJson, out_console, print_json, told

if TYPE_CHECKING:
    import torch

    from fedhash.models.settings import TowerSettings
    from fedhash.models.tower import Tower

__all__ = ["freeze_command"]

_OUTPUTS = 64  # of a base tower whose own outputs nobody reads


def freeze_command(
    modality: Annotated[str, typer.Argument(help="image, report or signal.")],
    agreement: Annotated[Path, typer.Option(help="The consortium's agreement.")],
    manifest: Annotated[Path, typer.Option(help="Manifest of the public studies.")],
    out: Annotated[Path, typer.Option(help="The file to write; must not exist.")],
    release: Annotated[
        Path | None, typer.Option(help="Take the tower of a release, trained on public data.")
    ] = None,
    trained_on_public_data: Annotated[
        bool,
        typer.Option(
            "--trained-on-public-data",
            help="Say so of the --release; nothing in its files proves it.",
        ),
    ] = False,
    tower: Annotated[
        str | None, typer.Option(help="Take a tower by its name, such as image_resnet18.")
    ] = None,
    options: Annotated[
        str, typer.Option(help='Its options as JSON, such as {"image_size_px": 128}.')
    ] = "{}",
    weights: Annotated[
        Path | None, typer.Option(help="Its parameters by name (safetensors), for --tower.")
    ] = None,
    layer: Annotated[
        str,
        typer.Option(
            help="last: what the last layer reads; prepared: the fixed front end, untrained."
        ),
    ] = "last",
    dimensions: Annotated[int, typer.Option(min=1, max=4096, help="Of the features.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Write what a frozen tower reads: a fixed tower, and a projection fitted to public studies.

    Nothing of a site's own patients belongs into it: no noise protects what it learns.
    """
    with told():
        from fedhash.agreement import Agreement
        from fedhash.configuration import read_settings
        from fedhash.data.manifest import read_manifest
        from fedhash.errors import DataError, ModelError
        from fedhash.learning.freezing import freeze
        from fedhash.models.anchors import Anchors
        from fedhash.models.hash_model import HashModel
        from fedhash.models.prepared import prepare_studies
        from fedhash_sim.run_folder import explained

        if layer not in {"last", "prepared"}:
            raise typer.BadParameter(f"{layer!r} is no layer; take last or prepared")
        if out.exists():
            raise DataError(f"{out} exists; frozen features never change: name another file")
        terms = read_settings(agreement, Agreement)
        settings, base = _base_tower(
            modality, release, trained_on_public_data, tower, options, weights, layer
        )
        if base.reads_frozen_features:
            raise ModelError(
                f"the tower {settings.name} is frozen itself; name the release or the tower that "
                "its features were made of"
            )
        read = read_manifest(manifest, terms.findings, (modality,))
        studies = [each for each in read.studies if each.consent]
        prepared = prepare_studies(
            HashModel({modality: base}, terms.code_bits), studies, terms.findings
        )
        frozen = freeze(
            modality,
            settings,
            base,
            "prepared" if layer == "prepared" else "last",
            prepared,
            Anchors.build(terms),
            dimensions=dimensions,
        )
        with explained(out):
            out.write_bytes(frozen.to_bytes())
    facts = {
        "file": str(out),
        "modality": modality,
        "tower": settings.name,
        "layer": layer,
        "dimensions": dimensions,
        "public studies": int(prepared.present[modality].sum()),
        "left out": len(read.problems),
        "sha256": frozen.sha256,
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        out_console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)
    out_console.print(
        f"in the round file: {{name: frozen_{modality}, options: "
        f"{{dimensions: {dimensions}, sha256: {frozen.sha256}}}}}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _base_tower(
    modality: str,
    release: Path | None,
    public: bool,
    tower: str | None,
    options: str,
    weights: Path | None,
    layer: str,
) -> tuple[TowerSettings, Tower]:
    """The tower that the command names, with its parameters."""
    from pydantic import ValidationError
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import nn

    from fedhash.errors import ModelError
    from fedhash.models.settings import TowerSettings
    from fedhash.models.towers import build_tower
    from fedhash.registry.release import load_release

    if (release is None) == (tower is None):
        raise typer.BadParameter("name a --release or a --tower, one of the two")
    if release is not None and not public:
        raise typer.BadParameter(
            "a tower that was trained on the sites' own patients leaks them in every feature, "
            "without bound, whatever the epsilon of the heads on it says; if the --release was "
            "trained on public data alone, add --trained-on-public-data"
        )
    if release is not None:
        loaded = load_release(release)
        base = loaded.build_model().tower(modality)
        return loaded.model_settings.towers[modality], base
    if weights is None and layer == "last":
        raise typer.BadParameter(
            "--layer last of an untrained tower is noise; give its --weights, or --layer prepared"
        )
    try:
        settings = TowerSettings(name=tower or "", options=json.loads(options))
    except ValidationError as error:
        wrong = error.errors()[0]["loc"][1:2]
        found = f"{wrong[0]!r} is no text, finite number, true or false" if wrong else "no object"
        raise ModelError(
            f"--options must be a JSON object of options ({found}), such as "
            '{"image_size_px": 128}'
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"--options must be a JSON object of options ({error}), such as "
            '{"image_size_px": 128}'
        ) from error
    base = build_tower(modality, settings, _OUTPUTS)
    if weights is not None:
        try:
            *_, last = (name for name, each in base.named_modules() if isinstance(each, nn.Linear))
            parameters = {
                name: values
                for name, values in load_file(weights).items()
                if not name.startswith(f"{last}.")  # nobody reads what it gives
            }
            _check_kind(weights, parameters)
            own = {name: v for name, v in base.state_dict().items() if name.startswith(f"{last}.")}
            base.load_state_dict(own | parameters)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(
                f"{weights} does not hold the parameters of {tower}: "
                f"{' '.join(str(error).split())}; give a safetensors file with the names and "
                "shapes of this tower's parameters"
            ) from error
    return settings, base


def _check_kind(weights: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """What would be cast to float32 and lose its meaning."""
    from fedhash.errors import ModelError

    for name, values in parameters.items():
        if not values.is_floating_point():
            raise ModelError(
                f"{weights} holds {name!r} as {values.dtype}; give parameters of real numbers"
            )
