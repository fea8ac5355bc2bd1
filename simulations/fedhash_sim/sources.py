"""Where the studies of a comparison come from: the phantom, a public set, or a manifest.

>>> pool = load_pool(study, seed=0, scratch=Path("runs/demo"))
>>> len(pool.studies), pool.problems
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhash.data.manifest import read_manifest
from fedhash.data.phantom import generate_phantom
from fedhash.data.recipes import RECIPES, Recipe
from fedhash.data.study import Content, Study
from fedhash.errors import DataError, ManifestError
from fedhash_sim.refusal import RefusedByDataError, at_its_line
from fedhash_sim.settings import ManifestSource, PhantomSource, RecipeSource, ResolvedStudy

__all__ = ["Pool", "find_recipe", "load_pool", "recipe_folder"]


@dataclass(frozen=True)
class Pool:
    """All studies of a comparison, before any split.

    Attributes:
        studies: Usable studies whose patients consent.
        problems: Rows that could not be used, with the reason.
        without_consent: Usable studies that were left out for want of consent.
        files: What the studies are read from, beside a manifest; none for the phantom.
    """

    studies: tuple[Study, ...]
    problems: tuple[str, ...] = ()
    without_consent: int = 0
    files: tuple[Path, ...] = ()


def load_pool(study: ResolvedStudy, seed: int, scratch: Path) -> Pool:
    """Load or draw the studies.

    Args:
        study: The comparison.
        seed: Seed of the phantom; other sources hold the same studies for every seed.
        scratch: Folder for the manifest that a recipe writes.

    Raises:
        ConfigurationError: The source is absent or holds nothing usable; it names the line.
        DataError: The same of a study that was read from no file, or a set is damaged.
    """
    if isinstance(study.settings.data, PhantomSource):
        return Pool(generate_phantom(study.settings.data, seed))
    with at_its_line(study):
        return _read_pool(study, study.settings.data, scratch)


def _read_pool(study: ResolvedStudy, source: RecipeSource | ManifestSource, scratch: Path) -> Pool:
    skipped: Mapping[str, int]
    files: set[Path]
    if isinstance(source, RecipeSource):
        recipe = find_recipe(source.recipe)
        folder = recipe_folder(source)
        written = recipe.write(folder, scratch)
        place, path, skipped = ("data", "recipe"), written.manifest, written.skipped
        files = {each.resolve() for each in folder.rglob("*") if each.is_file()}
    else:
        place, path, skipped, files = ("data", "manifest"), source.manifest, {}, set()
    try:
        manifest = read_manifest(path, study.agreement.findings, tuple(study.round.model.towers))
    except ManifestError as error:
        raise RefusedByDataError(place, str(error)) from error
    consenting = tuple(each for each in manifest.studies if each.consent)
    if not consenting:
        reason = "it has no rows"
        if manifest.problems:
            reason = (
                f"{len(manifest.problems)} rows have problems, the first: {manifest.problems[0]}"
            )
        if manifest.studies:
            reason = f"{len(manifest.studies)} studies are left out for want of consent"
        raise RefusedByDataError(place, f"{path} holds no study that can be used: {reason}")
    files |= {
        file for each in consenting for content in each.contents.values() for file in _file(content)
    }
    return Pool(
        consenting,
        (
            *(str(problem) for problem in manifest.problems),
            *(f"{count} rows of the set: {reason}" for reason, count in skipped.items()),
        ),
        len(manifest.studies) - len(consenting),
        tuple(sorted(files)),
    )


def _file(content: Content) -> list[Path]:
    """The file behind a content; none where the manifest's cell holds the content itself."""
    path = getattr(getattr(content, "reference", content), "path", None)
    return [path] if isinstance(path, Path) else []


def find_recipe(name: str) -> Recipe:
    """The recipe of a public set.

    Raises:
        DataError: There is none of that name.
    """
    if name not in RECIPES:
        raise DataError(f"there is no recipe {name!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def recipe_folder(source: RecipeSource) -> Path:
    """The folder of a public set.

    Raises:
        DataError: It is not named, or not there.
    """
    root = os.environ.get("FEDHASH_DATA")
    if source.folder is None and root is None:
        raise RefusedByDataError(
            ("data", "recipe"),
            f"the folder of {source.recipe} is not known: set the environment variable "
            "FEDHASH_DATA to the folder that holds the sets, or data.folder in the study",
        )
    folder = source.folder or Path(root or "") / source.recipe
    if not folder.is_dir():
        raise RefusedByDataError(
            ("data", "recipe"),
            f"{folder} is not there; set FEDHASH_DATA to the folder that holds {source.recipe}, "
            "or data.folder in the study",
        )
    return folder
