"""Recipes: manifests of public data sets, one set a file.

A new set is one registered class in one file of this package, and its import below.

    >>> RECIPES["kermany_cxr"].write(Path("/data/kermany_cxr"), Path("runs/kermany_cxr"))
"""

from __future__ import annotations

from fedhash.data.recipes.covid_cxr import CovidCxr
from fedhash.data.recipes.fashion_mnist import FashionMnist
from fedhash.data.recipes.kermany_cxr import KermanyCxr
from fedhash.data.recipes.ppg_bp import PpgBp
from fedhash.data.recipes.ptbxl_subset import PtbxlSubset
from fedhash.data.recipes.recipe import RECIPES, Recipe, RecipeReport, register_recipe
from fedhash.data.recipes.vqarad import VqaRad

__all__ = [
    "RECIPES",
    "CovidCxr",
    "FashionMnist",
    "KermanyCxr",
    "PpgBp",
    "PtbxlSubset",
    "Recipe",
    "RecipeReport",
    "VqaRad",
    "register_recipe",
]
