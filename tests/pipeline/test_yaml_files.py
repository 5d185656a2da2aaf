"""Untrusted recipes: refused at once, in a sentence, before anything is built from them."""

import datetime
import math
import tracemalloc

import pytest
import yaml

from kdtflite.errors import ConfigurationError
from kdtflite.models.builders import ARCHITECTURES as BUILT
from kdtflite.pipeline.bounds import ARCHITECTURES
from kdtflite.pipeline.recipe import load_recipe
from kdtflite.pipeline.yaml_files import find_absurd_value, parse_yaml, read_yaml

RECIPE = """\
name: small
data: {name: digits}
teacher:
  architecture: convnet
  training: {epochs: 1, learning_rate: 0.01}
distillation: {epochs: 1, learning_rate: 1e-2}
quantization: {epochs: 1, learning_rate: 0.01}
"""


def load(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load_recipe(file)


def test_the_recipe_that_the_others_vary_is_sound(tmp_path):
    recipe = load(tmp_path, RECIPE)
    assert recipe.distillation.learning_rate == 0.01  # which YAML reads as a text
    assert set(ARCHITECTURES) == set(BUILT)


def repeat(levels):
    """Returns aliases that double at every level."""
    lines = ["v0: &v0 [1, 1]"]
    lines += [f"v{n}: &v{n} [*v{n - 1}, *v{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 20_000, "at most 24 levels"),
        ("[" * 3000 + "]" * 3000, "at most 24 levels"),
        ("{a: " * 3000, "at most 24 levels"),
        ("- " * 3000, "at most 24 levels"),
        ("? " * 3000, "at most 24 levels"),
        (repeat(40), "at most 10,000 values"),
        ("&a [*a]", "contains itself: \\*a lies within &a"),
        ("&a {b: {c: *a}}", "contains itself"),
        ("[" + "1, " * 20_000 + "1]", "at most 10,000 values"),
        ("a: " + "x" * 300_000, "at most 262,144 bytes"),
        ("a: *nowhere", "not valid YAML"),
        ("a: 2020-99-99", "not valid YAML: month must be in"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ('a: !!int ""', "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!timestamp never", "not valid YAML"),
        ("a: !!float x", "not valid YAML"),
        ("a: !!binary x", "not valid YAML"),
        ("[1, 2]: 3", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "the key 'd' occurs twice"),
    ],
)
def test_documents_that_are_no_recipe_are_refused_without_being_built(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    tracemalloc.start()
    with pytest.raises(ConfigurationError, match=message) as error:
        read_yaml(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert len(str(error.value)) < 700


def test_aliases_and_merges_of_reasonable_size_are_read():
    text = b"a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: &d [1, 2]\ne: *d"
    assert parse_yaml(text, "here") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": [1, 2],
        "e": [1, 2],
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1e-2", ".inf", "distillation.learning_rate: expected a finite number, received inf"),
        ("1e-2", "-.inf", "distillation.learning_rate: expected a finite number"),
        ("1e-2", ".nan", "distillation.learning_rate: expected a finite number"),
        ("1e-2", "1.0e+999", "distillation.learning_rate: expected a finite number"),
        ("1e-2", "'inf'", "distillation.learning_rate"),
        ("1e-2", "1.0e+9", "distillation.learning_rate"),
        ("1e-2", "yes", "expected a number, not yes or no"),
        ("1e-2", "0.1, losses: [{name: soft_targets, weight: .inf}]", "losses.0.weight"),
        ("1e-2", "0.1, hard_label_weight: .nan", "hard_label_weight"),
        ("1e-2", "0.1, warmup_epochs: 1.0e+300", "warmup_epochs"),
        ("1e-2", "0.1, batch_size: 99999999999", "batch_size"),
        ("small", "..", "name: expected the name of a folder"),
        ("small", ".", "name: expected the name of a folder"),
        ("small", "...", "name: expected the name of a folder"),
        ("small", "a/b", "name"),
        ("small", "2020-01-01", "name: .*datetime.date"),
        ("small", "x" * 200, "name"),
        ("small", "x\nseed: 0x" + "f" * 5000, "seed: expected a number of at most 64 bits"),
        ("small", "x\nseed: true", "seed: expected a number, not yes or no"),
        ("small", "x\nseed: 4294967296", "seed"),
        ("convnet", "convnext", "no architecture 'convnext'. Did you mean 'convnet'"),
        ("convnet", "convnet\n  widths: [8, 99999999]", "teacher.widths.1"),
        ("name: small", "name: small\nname: other", "the key 'name' occurs twice"),
        ("{epochs: 1, learning_rate: 1e-2}", "{epochs: 1, epochs: 2}", "'epochs' occurs twice"),
        ("name: small", "name: small\n1: 2", "unknown key|keys should be strings"),
        ("name: small", "name: small\nx" + "y" * 900 + ": 2", "unknown key 'xyyy"),
    ],
)
def test_values_that_no_recipe_can_mean_are_refused(tmp_path, old, new, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        load(tmp_path, RECIPE.replace(old, new, 1))
    assert len(str(error.value)) < 1000


def test_a_dict_is_checked_like_a_file():
    recipe = yaml.safe_load(RECIPE)
    recipe["distillation"]["learning_rate"] = math.inf
    with pytest.raises(ConfigurationError, match="expected a finite number"):
        load_recipe(recipe)
    recipe["distillation"]["learning_rate"] = 10**5000
    with pytest.raises(ConfigurationError, match="at most 64 bits"):
        load_recipe(recipe)

    recipe["distillation"] = {"losses": [recipe]}
    with pytest.raises(ConfigurationError, match="contains itself"):
        load_recipe(recipe)


def test_the_place_of_an_absurd_value_is_named():
    assert find_absurd_value({"a": [1, {"b": math.nan}]}) == (
        "a.1.b: expected a finite number, received nan"
    )
    assert find_absurd_value({"a": [1, datetime.date(2020, 1, 1), None, True, "x"]}) is None
    assert find_absurd_value({"a": "x" * 10_001}) is not None
