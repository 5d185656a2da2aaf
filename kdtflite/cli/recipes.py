"""`kdtflite recipes`: the recipes that come with kdtflite."""

from __future__ import annotations

from typing import Annotated

import typer

from kdtflite.cli.options import show

__all__ = ["EPILOG", "NAME", "command"]

NAME = "recipes"
EPILOG = "Example: kdtflite recipes digits > my.yaml"


def command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None,
) -> None:
    """Lists the recipes that come with kdtflite, or prints one to start your own from."""
    from kdtflite.pipeline.recipe import list_recipes

    recipes = list_recipes()
    if name is None:
        width = max(map(len, recipes), default=0)
        for recipe, description in recipes.items():
            show(f"{recipe:{width}}  {description}")
        return
    from importlib import resources

    from kdtflite.errors import choose

    choose(name, recipes, what="recipe")
    text = (resources.files("kdtflite") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    show(text.rstrip("\n"))
