import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.errors import ConfigurationError
from kdtflite.pipeline.losses import loss_names
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
    assert "losses, temperature, hard_label_weight" in message
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


def refused(stage="distillation", **more):
    recipe = values()
    del recipe["distillation"]["temperature"]
    recipe[stage].update(more)
    with pytest.raises(ConfigurationError) as error:
        load_recipe(recipe)
    return str(error.value)


def loaded(stage="distillation", **more):
    recipe = values()
    del recipe["distillation"]["temperature"]
    recipe[stage].update(more)
    return getattr(load_recipe(recipe), stage)


def test_losses_are_chosen_unless_named_and_kept_for_the_quantization():
    assert loaded().losses == "auto"
    assert loaded().distiller_options() == {"losses": "auto"}
    assert loaded("quantization").losses == "distillation"
    assert loaded("quantization", temperature=2).losses is None
    assert list_recipes()["digits"]
    assert load_recipe("digits").distillation.losses == "auto"


def test_a_temperature_or_a_weight_alone_means_soft_targets():
    options = loaded(temperature=2.5, hard_label_weight=0.25).distiller_options()
    assert [type(loss).__name__ for loss in options["losses"]] == ["SoftTargets"]
    assert options["losses"][0].temperature == 2.5
    assert (options["hard_label_weight"], options["loss_weights"]) == (0.25, [0.75])
    only_weight = loaded(hard_label_weight=0.0).distiller_options()
    assert only_weight["losses"][0].temperature == 4.0


def test_losses_by_name_have_their_parameters_and_weights_and_schedules():
    options = loaded(
        losses=[
            {"name": "soft_targets", "temperature": {"schedule": "cosine", "start": 8, "end": 1}},
            {"name": "attention_transfer", "student_layers": ["a"], "teacher_layers": ["b"],
             "weight": 100},
            {"name": "logit_standardization", "loss": {"name": "soft_targets", "temperature": 1}},
            {"name": "soft_targets", "temperature": 1},
            {"name": "soft_targets", "temperature": 2, "weight": 0.5},
        ],
        hard_label_weight={"schedule": "linear", "start": 0.1, "end": 1},
    ).distiller_options()  # fmt: skip
    soft, transfer, standardized, again, third = options["losses"]
    assert (soft.temperature.at(0, 3), soft.temperature.at(2, 3)) == (8, 1)
    assert (transfer.student_layers, transfer.teacher_layers) == (("a",), ("b",))
    assert standardized.loss.temperature == 1
    names = [loss.name for loss in (soft, again, third)]
    assert names == ["soft_targets", "soft_targets_2", "soft_targets_3"]
    assert options["hard_label_weight"].at(1, 3) == pytest.approx(0.55)
    # Each of four losses on logits has a fourth of what the hard labels leave, or its own weight.
    assert options["loss_weights"][0].at(0, 3) == pytest.approx(0.9 / 4)
    assert options["loss_weights"][1] == 100
    assert options["loss_weights"][4] == 0.5


def test_every_loss_over_classes_has_a_name():
    assert {"soft_targets", "dist", "crd", "decoupled_kd", "relational_kd"} <= set(loss_names())
    assert "regression" not in loss_names()
    assert all(issubclass(loss, DistillationLoss) for loss in loss_names().values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"losses": "best"}, "expected 'auto' or a list such as"),
        ({"losses": ["soft_targets"]}, "expected 'auto' or a list such as"),
        ({"losses": "auto", "temperature": 2}, "brings temperature and weights with it"),
        ({"losses": "auto", "hard_label_weight": 0}, "brings temperature and weights with it"),
        ({"losses": [{"name": "dist"}], "temperature": 2}, "beside the name of a loss"),
        ({"losses": [{"name": "soft_target"}]}, "Did you mean 'soft_targets'"),
        ({"losses": [{"name": "dist", "betta": 1}]}, "has no betta. Expected: temperature, beta"),
        ({"losses": [{"name": "hints"}]}, "needs student_layers, teacher_layers"),
        ({"losses": [{"name": "dist", "weight": "big"}]}, "Expected a number".lower()),
        ({"losses": [{"name": "dist", "weight": -1}]}, "none negative"),
        ({"losses": [{"name": "regression"}]}, "no loss 'regression'"),
        ({"temperature": 0}, "positive, finite temperature"),
        ({"temperature": {"schedule": "cosin"}}, "Did you mean 'cosine'"),
        ({"temperature": {"schedule": "cosine", "start": 1}}, "needs end"),
        ({"temperature": "hot"}, "could not convert string"),
        ({"hard_label_weight": 2}, "from 0 to 1"),
        ({"hard_label_weight": "half"}, "'half'"),
        ({"mixing": {}}, "either `mixup` or `cutmix`"),
        ({"mixing": {"mixup": 1, "cutmix": 1}}, "either `mixup` or `cutmix`"),
        ({"mixing": {"mixup": 0}}, "mixing.mixup"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
        ({"ema": 1.0}, "distillation.ema"),
        ({"label_smoothing": 1.0}, "distillation.label_smoothing"),
    ],
)
def test_losses_and_aids_that_make_no_sense_are_refused(more, message):
    assert message in refused(**more)


def test_the_quantization_does_not_choose_anew():
    assert "expected 'distillation' or a list" in refused("quantization", losses="auto")


def test_the_baseline_has_the_same_training_aids():
    recipe = values()
    recipe["distillation"].update(
        ema=0.9, weight_decay=0.01, mixing={"cutmix": 1}, early_stopping={"patience": 3}
    )
    baseline = load_recipe(recipe).baseline
    assert (baseline.ema, baseline.weight_decay, baseline.mixing.cutmix) == (0.9, 0.01, 1)
    assert baseline.early_stopping.patience == 3
    assert yaml.safe_load(yaml.safe_dump(load_recipe(recipe).model_dump(mode="json")))


def test_a_recipe_that_names_no_losses_is_read_without_tensorflow():
    check = (
        "import sys; from kdtflite.pipeline.recipe import list_recipes; list_recipes();"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
