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
from fedhash.errors import DataError
from fedhash_sim.settings import PhantomSource, RecipeSource, ResolvedStudy

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
        DataError: The source is absent or holds nothing usable.
    """
    source = study.settings.data
    skipped: Mapping[str, int]
    files: set[Path]
    if isinstance(source, PhantomSource):
        return Pool(generate_phantom(source, seed))
    if isinstance(source, RecipeSource):
        recipe = find_recipe(source.recipe)
        folder = recipe_folder(source)
        written = recipe.write(folder, scratch)
        manifest_path, skipped = written.manifest, written.skipped
        files = {each.resolve() for each in folder.rglob("*") if each.is_file()}
    else:
        manifest_path, skipped, files = source.manifest, {}, set()
    manifest = read_manifest(
        manifest_path, study.agreement.findings, tuple(study.round.model.towers)
    )
    consenting = tuple(each for each in manifest.studies if each.consent)
    if not consenting:
        raise DataError(
            f"{manifest_path} holds no usable study ({len(manifest.problems)} rows with problems); "
            f"the first: {manifest.problems[0] if manifest.problems else 'no rows at all'}"
        )
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
        raise DataError(
            f"the folder of {source.recipe} is not known: set the environment variable "
            "FEDHASH_DATA to the folder that holds the sets, or data.folder in the study"
        )
    folder = source.folder or Path(root or "") / source.recipe
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not there; set FEDHASH_DATA to the folder that holds {source.recipe}, "
            "or data.folder in the study"
        )
    return folder
