import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdtflite.distillation import losses
from kdtflite.distillation.losses import DistillationLoss
from kdtflite.distillation.objective import Objective
from kdtflite.errors import ConfigurationError
from kdtflite.pipeline.losses import loss_names, make_losses
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


def test_the_baseline_trains_like_the_student_to_ship_without_the_teacher():
    recipe = load_recipe(values())
    assert recipe.baseline.epochs == 4
    assert recipe.baseline_quantization.epochs == 3
    assert recipe.baseline_quantization.learning_rate == recipe.quantization.learning_rate
    for training in (recipe.baseline, recipe.baseline_quantization):
        assert not {"losses", "temperature", "cached_views"} & set(type(training).model_fields)
    assert recipe.baseline.learning_rate == recipe.distillation.learning_rate
    assert recipe.baseline.augmentation == recipe.distillation.augmentation
    own = {**values(), "hard_labels": {"epochs": 2, "learning_rate": 0.5}}
    assert load_recipe(own).baseline.epochs == 2


def test_a_quantization_left_out_is_a_short_tail_at_a_tenth_of_the_rate():
    recipe = values()
    recipe["distillation"] = {
        "epochs": 40, "learning_rate": 0.2, "optimizer": "sgd", "weight_decay": 0.0002,
        "augmentation": {"crop": 4}, "temperature": 3, "cached_views": 8,
    }  # fmt: skip
    del recipe["quantization"]
    tail = load_recipe(recipe).quantization
    assert (tail.epochs, tail.learning_rate, tail.optimizer) == (5, 0.02, "sgd")
    assert (tail.weight_decay, tail.augmentation.crop) == (0.0002, 4)
    assert (tail.losses, tail.cached_views) == ("distillation", 8)
    recipe["quantization"] = {"epochs": 2}
    tail = load_recipe(recipe).quantization
    assert (tail.epochs, tail.learning_rate, tail.optimizer) == (2, 0.02, "adam")
    recipe["quantization"] = {"epochs": 2, "learning_rate": 1}
    assert load_recipe(recipe).quantization.learning_rate == 1


def test_a_share_of_labels_is_said_in_either_spelling():
    recipe = values()
    for word in ("labeled", "labelled"):
        recipe["data"] = {"name": "digits", word: 0.1}
        stored = load_recipe(recipe).model_dump()["data"]
        assert stored["labeled"] == 0.1
        assert "labelled" not in stored
    for wrong, message in (
        ({"labeled": 0.1, "labelled": 0.1}, "either `labeled` or `labelled`"),
        ({"labeled": 1.01}, "data.labeled"),
        ({"labelled": 0}, "data.labeled"),
    ):
        recipe["data"] = {"name": "digits", **wrong}
        with pytest.raises(ConfigurationError, match=message):
            load_recipe(recipe)


def test_the_files_to_choose_from_are_named_and_all_four_by_default():
    recipe = values()
    four = ["ptq_int8", "hard_labels_qat_int8", "distilled_ptq_int8", "distilled_int8"]
    assert load_recipe(recipe).variants == four
    with_int4 = load_recipe({**recipe, "conversion": {"target": "int8x4"}})
    assert with_int4.variants == [*four, "distilled_int8x4"]
    assert load_recipe(with_int4.model_dump()) == with_int4
    recipe["variants"] = four[2:]
    assert load_recipe(recipe).variants == four[2:]
    for wrong in ([], ["distilled"], [four[0], four[0]], ["int8"], "ptq_int8"):
        recipe["variants"] = wrong
        with pytest.raises(ConfigurationError, match="variants"):
            load_recipe(recipe)


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


LOSSES = [
    loss
    for loss in (getattr(losses, name) for name in losses.__all__)
    if isinstance(loss, type)
    and issubclass(loss, DistillationLoss)
    and not inspect.isabstract(loss)
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_loss_has_one_word_in_recipes_logs_and_on_its_class(loss):
    word = vars(loss)["default_name"]  # of the class itself, not inherited
    task = loss.tasks[0]
    assert (loss_names().get(word) is loss) == ("multiclass" in loss.tasks)
    layers = {"student_layers": ["a", "b"], "teacher_layers": ["c", "d"]}
    arguments = {
        **(layers if issubclass(loss, losses.FeatureLoss) else {}),
        **({"loss": losses.SoftTargets()} if loss is losses.LogitStandardization else {}),
    }
    made = loss(**arguments)
    assert made.name == word
    assert loss(**arguments, name="own").name == "own"
    outputs = "values" if task == "regression" else "logits"
    objective = Objective([made], None, None, outputs=outputs, task=task, output_shape=(None, 3))
    assert f"{word}_loss" in [metric.name for metric in objective.metrics]


def test_recipes_know_a_loss_by_its_class_and_not_by_its_file(monkeypatch):
    monkeypatch.setattr(losses.SoftTargets, "__module__", "kdtflite.distillation.losses.moved")
    loss_names.cache_clear()
    assert loss_names()["soft_targets"] is losses.SoftTargets
    assert "moved" not in loss_names()


def test_the_word_that_logs_once_had_for_a_loss_still_names_it():
    entry = {"student_layers": "a", "teacher_layers": "b"}
    old, new = (
        make_losses([{"name": name, **entry}])["losses"][0]
        for name in ("relational", "relational_kd")
    )
    assert type(old) is type(new) is losses.RelationalKD
    assert old.name == new.name == "relational_kd"


def test_a_loss_is_named_after_its_class_and_never_without_a_name():
    class OwnKDLoss(losses.LogitsLoss):
        def __call__(self, student_logits, teacher_logits):
            raise NotImplementedError

    assert OwnKDLoss().name == "own_kd_loss"
    with pytest.raises(ConfigurationError, match="Received: name=''"):
        losses.SoftTargets(name="")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"losses": "best"}, "expected 'auto' or a list such as"),
        ({"losses": ["soft_targets"]}, "expected 'auto' or a list such as"),
        ({"losses": "auto", "temperature": 2}, "includes temperature and weights"),
        ({"losses": "auto", "hard_label_weight": 0}, "includes temperature and weights"),
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
        ({"temperature": "hot"}, "temperature= to be a number"),
        ({"hard_label_weight": 2}, "from 0 to 1"),
        ({"hard_label_weight": "half"}, "'half'"),
        ({"mixing": {}}, "either `mixup` or `cutmix`"),
        ({"mixing": {"mixup": 1, "cutmix": 1}}, "either `mixup` or `cutmix`"),
        ({"mixing": {"mixup": 0}}, "mixing.mixup"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
        ({"ema": 1.0}, "distillation.ema"),
        ({"label_smoothing": 1.0}, "distillation.label_smoothing"),
        ({"optimizer": "rmsprop"}, "distillation.optimizer"),
        ({"optimizer": "adamw"}, "needs a `weight_decay`"),
        ({"schedule": "linear"}, "distillation.schedule"),
        ({"batch_norm_batches": -1}, "distillation.batch_norm_batches"),
        ({"augmentation": {"shift": 1, "crop": 1}}, "either `shift` or `crop`"),
        ({"augmentation": {"crop": 1.5}}, "distillation.augmentation.crop"),
        ({"cached_views": 8, "augmentation": {}}, "the 8 `cached_views` would all be the same"),
        ({"cached_views": 1, "mixing": {"mixup": 1}}, "not for mixed ones"),
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
