"""`fedhash-coordinator search`: ask the sites, where the agreement lets the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhash.errors import FedhashError, QueryError
from fedhash_process.printing import AsJson, fail, print_facts, print_json

__all__ = ["search"]


def search(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")],
    purpose: Annotated[str, typer.Option(help="What it is for, as the agreement names it.")],
    code: Annotated[
        Path | None, typer.Option(help="A file with release and code, made elsewhere.")
    ] = None,
    release: Annotated[
        Path | None, typer.Option(help="Folder of the release that encodes the example.")
    ] = None,
    report: Annotated[str | None, typer.Option(help="Search for studies like this text.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search for studies like this image.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The modality to search in; default: the example's own.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits wanted.")] = 10,
    kappa: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Bound the radius: towards 1 precise, towards -1 broad."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only hits with this attribute. May be repeated."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.1, max=60, help="How long sites may take.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Ask all sites for studies like an example. Their handles lead back only there."""
    from fedhash.data.modalities import MODALITIES
    from fedhash.index.encoding import check_example, encode_example
    from fedhash.registry.release import load_release
    from fedhash.search import make_query, radius_from_kappa
    from fedhash.search.describing import describe, explain
    from fedhash.search.filters import parse_filters
    from fedhash_server.coordinator_folder import CoordinatorFolder
    from fedhash_server.coordinator_search import ask_sites, read_code_file

    try:
        place = CoordinatorFolder(folder)
        filters = parse_filters(where or [])
        agreement = place.agreement()
        radius = None if kappa is None else radius_from_kappa(kappa, agreement.code_bits)
        if sum(each is not None for each in (code, report, image)) != 1:
            raise QueryError("give exactly one of --code, --report and --image")
        if code is not None:
            if target is None:
                raise QueryError("a code does not tell what to search in; give --target")
            query = read_code_file(code).query(modality=target, k=k, radius=radius, filters=filters)
        else:
            if release is None:
                raise QueryError("an example is encoded by a release; give --release FOLDER")
            modality, value = ("image", str(image)) if report is None else ("report", report)
            check_example(value)
            content = MODALITIES[modality].read(value, Path.cwd()).load()
            loaded = load_release(release)
            query = make_query(
                encode_example(loaded.build_model(), modality, content),
                release_id=loaded.release_id,
                modality=target or modality,
                k=k,
                radius=radius,
                filters=filters,
            )
        merged = ask_sites(place, query, purpose=purpose, timeout_s=timeout_s)
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(describe(merged))
        return
    facts: dict[str, object] = {"partial": "yes" if merged.missing else "no"}
    facts |= {each.site: explain(each) for each in merged.sites}
    print_facts(facts, as_json=False)
    for hit in merged.hits:
        typer.echo(f"{hit.distance:4d}  {hit.site}  {hit.handle}")
