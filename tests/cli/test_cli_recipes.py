"""`kdtflite recipes`."""

from __future__ import annotations

import yaml

from kdtflite.pipeline.recipe import list_recipes, load_recipe


def test_recipes_lists_every_recipe_with_its_description(invoke):
    result = invoke("recipes")
    assert result.exit_code == 0
    listed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert listed == list_recipes()
    assert "digits" in listed


def test_a_printed_recipe_is_that_recipe(invoke):
    result = invoke("recipes", "digits")
    assert load_recipe(yaml.safe_load(result.stdout)) == load_recipe("digits")


def test_an_unknown_recipe_names_the_nearest(invoke):
    result = invoke("recipes", "digit")
    assert result.exit_code == 2
    assert "There is no recipe 'digit'. Did you mean 'digits'?" in result.stderr
