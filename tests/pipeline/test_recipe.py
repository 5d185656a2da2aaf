from pathlib import Path

import pytest
import yaml

from kdtflite.errors import ConfigurationError
from kdtflite.pipeline.recipe import Recipe, list_recipes, load_recipe

TINY = Path(__file__).parents[1] / "tiny.yaml"


def values() -> dict:
    return yaml.safe_load(TINY.read_text())


def test_every_recipe_that_comes_along_is_valid_and_described():
    recipes = list_recipes()
    assert {"digits", "mnist"} <= set(recipes)
    for name, description in recipes.items():
        assert load_recipe(name).name == name
        assert len(description) > 20


def test_an_unknown_key_lists_the_valid_ones_at_its_place():
    recipe = values()
    recipe["distillation"]["temprature"] = 4
    with pytest.raises(ConfigurationError) as error:
        load_recipe(recipe)
    message = str(error.value)
    assert "unknown key 'distillation.temprature'" in message
    assert "temperature, hard_label_weight" in message
    assert "student" not in message


def test_every_fault_of_a_recipe_is_said_at_once():
    recipe = values()
    del recipe["data"]
    recipe["seed"] = -1
    recipe["quantization"]["epochs"] = "many"
    with pytest.raises(ConfigurationError) as error:
        load_recipe(recipe)
    for part in ("'data' is missing", "seed", "received -1", "quantization.epochs", "'many'"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "give either `architecture`"),
        ({"architecture": "convnet", "load": "x.keras"}, "give either `architecture`"),
        ({"architecture": "convnet"}, "needs `training`"),
        ({"load": "x.keras", "widths": [3]}, "not for `load`"),
    ],
)
def test_a_teacher_is_built_or_loaded(teacher, message):
    with pytest.raises(ConfigurationError, match=message):
        load_recipe({**values(), "teacher": teacher})


def test_yaml_is_data_only(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("name: !!python/object/apply:os.system ['touch pwned']")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_recipe(file)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "Received: list"),
        (b"", "Received: NoneType"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(file)


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(ConfigurationError, match="no recipe file"):
        load_recipe("nowhere/recipe.yaml")


def test_the_baseline_trains_as_long_as_the_student_to_ship():
    recipe = load_recipe(values())
    assert recipe.baseline.epochs == 4 + 3
    assert recipe.baseline.learning_rate == recipe.distillation.learning_rate
    assert recipe.baseline.augmentation == recipe.distillation.augmentation
    own = {**values(), "hard_labels": {"epochs": 2, "learning_rate": 0.5}}
    assert load_recipe(own).baseline.epochs == 2


def test_a_recipe_survives_yaml():
    recipe = load_recipe(values())
    again = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert Recipe.model_validate(again) == recipe


@pytest.mark.parametrize("size", [None, 32, [24, 32]])
def test_images_of_a_folder_have_one_size_for_both_sides_or_two(size):
    data = {"name": "./images", "image_size": size, "channels": 1}
    assert load_recipe({**values(), "data": data}).data.image_size == size


@pytest.mark.parametrize("size", [0, [32], [32, 0], [1, 2, 3], "big", True])
def test_a_size_that_no_image_has_is_refused(size):
    recipe = values()
    recipe["data"]["image_size"] = size
    with pytest.raises(ConfigurationError, match=r"data\.image_size: expected pixels, one whole"):
        load_recipe(recipe)
