import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import kdtflite
from kdtflite.conversion.target_proof import prove_target
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    ModelFileError,
    OutputExistsError,
    ShapeMismatchError,
)
from kdtflite.evaluation.accuracy import evaluate
from kdtflite.files import sha256
from kdtflite.models import load_model
from kdtflite.pipeline.finished import digest_result
from kdtflite.pipeline.run import RUN_FILES, run

INT4 = ("distilled_qat_int8x4",)  # stages that a run has only if its recipe asks for them
TINY = Path(__file__).parents[1] / "tiny.yaml"
KEYS = [
    *("teacher", "hard_labels", "distilled"),
    *("ptq_int8", "hard_labels_qat_int8", "distilled_ptq_int8", "distilled_int8"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(TINY, output=tmp_path_factory.mktemp("runs") / "tiny")


def test_the_run_ends_with_a_proven_file_and_a_report(result):
    assert {spec.dtype for spec in result.lite.inputs + result.lite.outputs} == {"int8"}
    assert kdtflite.prove_fully_integer(result.lite).invoked_with == "XNNPACK"
    assert result.report["proof"]["float_tensors"] == 0
    assert [model["key"] for model in result.report["models"]] == KEYS
    page = result.html.read_text()
    assert "student, distilled" in page.lower()
    assert page.count("http://") + page.count("https://") <= page.count("www.w3.org")


def test_every_file_says_its_classes_its_scaling_and_its_recipe(result):
    from kdtflite.pipeline.metadata import compute_recipe_digest
    from kdtflite.pipeline.recipe import load_recipe

    digest = compute_recipe_digest(load_recipe(result.folder / "recipe.yaml"))
    for model in result.report["models"]:
        metadata = kdtflite.LiteModel.load(result.folder / model["file"]).metadata
        assert metadata.labels == tuple("0123456789")
        assert metadata.normalization == ((0.0,), (255.0,))
        assert metadata.name == model["key"]
        assert metadata.details["recipe"] == {"name": "tiny", "sha256": digest}
        assert metadata.details["kdtflite"] == kdtflite.__version__
    assert result.lite.metadata.author == "Jane Doe"
    # Not a word of where the run or its data lie.
    assert str(result.folder).encode() not in result.lite.content


def test_the_digest_of_a_recipe_is_of_what_it_says_not_of_where_files_lie():
    from kdtflite.pipeline.metadata import compute_recipe_digest
    from kdtflite.pipeline.recipe import load_recipe

    tiny = load_recipe(TINY).model_dump()
    here = {**tiny, "data": {**tiny["data"], "name": "/here/a.npz"}}
    there = {**tiny, "data": {**tiny["data"], "name": "/there/a.npz", "path": "auto"}}
    other = {**tiny, "seed": tiny["seed"] + 1}
    digests = [compute_recipe_digest(load_recipe(values)) for values in (here, there, tiny, other)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_report_says_what_the_files_themselves_say(result):
    dataset = kdtflite.data.load("digits", seed=7)
    for model in result.report["models"]:
        file = result.folder / model["file"]
        assert sha256(file) == model["sha256"]
        assert file.stat().st_size == model["bytes"]
        measured = evaluate(str(file), dataset.test, progress=False)
        assert measured.accuracy == model["accuracy"]
        assert np.trace(result.report["confusion"][model["key"]]) == round(
            measured.accuracy * len(dataset.test.y)
        )


def test_the_shipped_file_is_the_one_chosen_on_validation_samples(result):
    from kdtflite.pipeline.selection import MeasuredFile, select_file

    validation = kdtflite.data.load("digits", seed=7).validation
    files = []
    for model in result.report["models"][3:]:
        lite = kdtflite.LiteModel.load(result.folder / model["file"])
        right = lite.predict(validation.x).argmax(axis=1) == validation.y
        files.append(
            MeasuredFile(model["key"], model["label"], right, model["bytes"], model["macs"])
        )
    selection = result.report["selection"]
    assert select_file(files, validation.y).to_dict() == selection
    digests = {model["key"]: model["sha256"] for model in result.report["models"]}
    assert sha256(result.folder / "student.tflite") == digests[selection["chosen"]]
    assert result.selection.chosen == selection["chosen"]
    assert result.selection.why in " ".join(result.html.read_text().split(" "))
    assert f"files/{selection['chosen']}.tflite" in (result.folder / "log.txt").read_text()


def test_the_report_compares_models_on_the_same_test_samples(result):
    test = kdtflite.data.load("digits", seed=7).test
    right = {}
    for model in result.report["models"]:
        lite = kdtflite.LiteModel.load(result.folder / model["file"])
        right[model["key"]] = lite.predict(test.x).argmax(axis=1) == test.y
    pairs = {(each["first"], each["second"]): each for each in result.report["comparisons"]}
    assert (result.selection.chosen, "teacher") in pairs
    for (first, second), found in pairs.items():
        gap = right[first].mean() - right[second].mean()
        assert found["difference"] == pytest.approx(gap, abs=1e-12)
        assert found["low"] <= found["difference"] <= found["high"]


def test_every_quantization_aware_student_is_answered_by_its_file_within_three_steps(result):
    images = kdtflite.data.load("digits", seed=7).test.x
    for stage, key in (("hard_labels_qat", "hard_labels_qat_int8"), ("distilled_qat", KEYS[-1])):
        aware = load_model(result.folder / stage / "model.keras").predict(images, verbose=0)
        lite = kdtflite.LiteModel.load(result.folder / "files" / f"{key}.tflite")
        steps = np.abs(aware - lite.predict(images)) / lite.outputs[0].scale
        assert steps.max() <= 3
        assert steps.mean() <= 0.25


def test_the_parity_in_the_report_is_that_of_the_shipped_file(result):
    from kdtflite.reporting.variants import get_variant

    parity = result.report["parity"]
    assert parity["samples"] == 449
    assert parity["kernels"] == "XNNPACK"
    images = kdtflite.data.load("digits", seed=7).test.x
    stage = get_variant(result.selection.chosen).stage
    model = load_model(result.folder / stage / "model.keras").predict(images, verbose=0)
    outputs = result.lite.predict(images)
    steps = np.abs(model - outputs) / result.lite.outputs[0].scale
    same = model.argmax(axis=1) == outputs.argmax(axis=1)
    assert parity["argmax_agreement"] == pytest.approx(same.mean(), abs=1e-12)
    np.testing.assert_allclose(parity["largest_difference_steps"], steps.max(), atol=1e-3)
    np.testing.assert_allclose(parity["mean_difference_steps"], steps.mean(), atol=1e-3)


def test_the_report_of_a_real_run_is_read_by_the_keys_it_is_written_with(result):
    from kdtflite.reporting.schema import read_report
    from kdtflite.reporting.verdict import judge

    stored = json.loads((result.folder / "report.json").read_text())
    assert stored == result.report
    report = read_report(stored)
    assert report.test_samples == 449
    topics = [finding.topic for finding in judge(stored).findings]
    assert topics[:3] == ["Gain", "Choice", "Against the teacher"]
    assert {"Distillation", "Quantization", "Integer proof"} <= set(topics)
    page = " ".join(result.html.read_text().split()).replace("\u00a0", " ")
    assert ", 449 test samples of shape 8 × 8 × 1" in page
    assert len(result.plot().containers) + len(result.plot().collections) > 0


def test_training_curves_hold_every_loss_term(result):
    curves = result.report["training"]["distilled"]
    assert curves["epochs"] == [1, 2, 3, 4]
    history = curves["history"]
    total = 0.1 * np.array(history["hard_labels_loss"]) + 0.9 * np.array(
        history["soft_targets_loss"]
    )
    np.testing.assert_allclose(history["loss"], total, rtol=1e-4)
    assert len(history["learning_rate"]) == len(history["val_accuracy"]) == 4


def test_samples_show_disagreements_first(result):
    def differ(sample):
        return len({p["class"] for p in sample["predictions"].values()}) > 1

    flags = [differ(sample) for sample in result.report["samples"]]
    assert flags == sorted(flags, reverse=True)
    digits = load_digits()
    assert {len(sample["image"]) for sample in result.report["samples"]} == {8}
    assert max(s["label"] for s in result.report["samples"]) <= max(digits.target)


def test_the_run_folder_tells_how_it_was_made(result):
    recipe = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert recipe == result.report["recipe"]
    about = json.loads((result.folder / "run.json").read_text())
    assert about["seed"] == 7
    assert about["versions"]["tensorflow"].startswith("2.21")
    for artifact in result.report["reproduce"]["artifacts"]:
        assert sha256(result.folder / artifact["file"]) == artifact["sha256"]
    log = (result.folder / "log.txt").read_text()
    assert "Stage 5 of 9" in log
    # The check before the first training says nothing of the models that it throws away.
    before = log[log.index("Stage 1 of 9") : log.index("Stage 2 of 9")]
    assert "batch normalization" not in before


def test_a_finished_run_is_not_run_again(result, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in result.folder.rglob("*.json"))
    again = run(TINY, output=result.folder)
    assert again.report == result.report
    assert sorted((p, p.stat().st_mtime_ns) for p in result.folder.rglob("*.json")) == before
    assert "is already finished" in capsys.readouterr().err


def test_another_recipe_in_the_same_folder_is_refused_and_named(result):
    recipe = yaml.safe_load(TINY.read_text())
    recipe["distillation"]["epochs"] = 5
    with pytest.raises(OutputExistsError, match=r"distillation\.epochs was 4, is 5"):
        run(recipe, output=result.folder)


def test_a_folder_that_holds_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="holds no run"):
        run(TINY, output=tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_user_s_own_recipe_and_data_in_the_folder_are_never_removed(tmp_path):
    (tmp_path / "recipe.yaml").write_text(TINY.read_text())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"years of work")
    before = sorted(tmp_path.rglob("*"))
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="holds no run"):
            run(tmp_path / "recipe.yaml", output=tmp_path, force=force)
        assert sorted(tmp_path.rglob("*")) == before


def test_starting_over_removes_what_a_run_made_and_nothing_else(result, tmp_path):
    from kdtflite.pipeline.stages import STAGES

    assert {path.name for path in result.folder.iterdir()} == {*RUN_FILES} - {*INT4}
    assert RUN_FILES[: len(STAGES)] == tuple(stage.name for stage in STAGES)
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    (folder / "notes.txt").write_text("mine")
    refused = yaml.safe_load(TINY.read_text())
    refused["teacher"] = {"load": str(tmp_path / "nowhere.keras")}
    with pytest.raises(ModelFileError):
        run(refused, output=folder, force=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_run_killed_between_its_first_two_files_begins_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    refused = yaml.safe_load(TINY.read_text())
    refused["teacher"] = {"load": str(tmp_path / "nowhere.keras")}
    with pytest.raises(ModelFileError):  # and not that the folder is in the way
        run(refused, output=folder)
    assert not folder.exists()


def test_a_changed_artifact_is_made_again(result, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    (folder / "report.json").unlink()
    (folder / "files" / "ptq_int8.tflite").write_bytes(b"damaged")
    again = run(TINY, output=folder)
    before = {m["key"]: m["sha256"] for m in result.report["models"]}
    assert {m["key"]: m["sha256"] for m in again.report["models"]} == before
    assert "files is repeated" in (folder / "log.txt").read_text()


@pytest.fixture
def copy(result, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    return folder


def rename_keys(content):
    done = json.loads(content)
    done["result"] = {f"{key}?": value for key, value in done["result"].items()}
    return json.dumps(done).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("student.tflite", b"changed"),
        ("student.tflite", None),
        ("report.json", b""),
        ("report.json", b"{}"),
        ("report.html", b""),
        ("report.html", None),
        ("run.json", b"{"),
        ("measurements/done.json", b""),
        ("measurements/done.json", b'{"seconds": 1, "artifacts": [], "result": []}'),
        ("selection/done.json", b""),
        ("selection/done.json", rename_keys),
        ("measurements/done.json", rename_keys),
        ("files/ptq_int8.tflite", None),
    ],
)
def test_a_finished_run_whose_files_were_changed_is_mended(result, copy, name, content, capfd):
    path = copy / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    again = run(TINY, output=copy)
    said = " ".join(capfd.readouterr().err.split())
    assert "is already finished" not in said
    assert "is mended" in said or "is written again" in said
    shipped = (result.folder / "student.tflite").read_bytes()
    assert (copy / "student.tflite").read_bytes() == shipped
    assert [m["sha256"] for m in again.report["models"]] == [
        m["sha256"] for m in result.report["models"]
    ]
    assert json.loads((copy / "report.json").read_text()) == again.report
    run(TINY, output=copy)
    assert "is already finished" in capfd.readouterr().err


def test_an_accuracy_changed_by_hand_is_not_believed(result, copy):
    report = json.loads((copy / "report.json").read_text())
    report["models"][-1]["accuracy"] = 1.0
    (copy / "report.json").write_text(json.dumps(report, indent=2))
    assert run(TINY, output=copy).report["models"] == result.report["models"]


def test_a_recipe_that_is_damaged_in_the_folder_is_said(copy):
    (copy / "recipe.yaml").write_text("a: [")
    with pytest.raises(OutputExistsError, match=r"recipe of the run in .* is damaged"):
        run(TINY, output=copy)


def test_what_a_killed_process_left_in_the_folder_is_swept(copy):
    left = [copy / place / ".x.json.kdtflite-scratch-write-abcdefgh" for place in ("", "files")]
    for folder in left:
        folder.mkdir()
    run(TINY, output=copy)
    assert not any(folder.exists() for folder in left)


def test_a_folder_with_nothing_but_leftovers_is_an_empty_one(tmp_path):
    folder = tmp_path / "run"
    (folder / ".run.json.kdtflite-scratch-write-abcdefgh").mkdir(parents=True)
    refused = yaml.safe_load(TINY.read_text())
    refused["teacher"] = {"load": str(tmp_path / "nowhere.keras")}
    with pytest.raises(ModelFileError):  # and not that the folder is in the way
        run(refused, output=folder)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("student", {"widths": [8]}, "student cannot be used: Expected widths"),
        (
            "distillation",
            {"losses": [{"name": "hints", "student_layers": "nowhere", "teacher_layers": "pool"}]},
            "distillation cannot be used: .*nowhere",
        ),
        (
            "quantization",
            {"losses": [{"name": "hints", "student_layers": "pool", "teacher_layers": "nowhere"}]},
            "quantization cannot be used: .*nowhere",
        ),
    ],
)
def test_a_recipe_is_checked_whole_before_its_first_training(tmp_path, part, changes, message):
    recipe = yaml.safe_load(TINY.read_text())
    recipe[part].update(changes)
    recipe["distillation"].pop("temperature" if part == "distillation" else "", None)
    with pytest.raises(ConfigurationError, match=message):
        run(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_of_another_kind_than_images_are_refused_before_a_training(tmp_path):
    x, y = np.random.default_rng(0).random((40, 12), np.float32), np.arange(40) % 2
    np.savez(tmp_path / "vectors.npz", x=x, y=y)
    recipe = yaml.safe_load(TINY.read_text())
    recipe["data"] = {"name": str(tmp_path / "vectors.npz")}
    with pytest.raises(ConfigurationError, match="takes images"):
        run(recipe, output=tmp_path / "run")
    np.savez(tmp_path / "vectors.npz", x=np.zeros((40, 8, 8, 1), np.float32), y=np.zeros(40, int))
    with pytest.raises(ConfigurationError, match="at least 2 classes"):
        run(recipe, output=tmp_path / "run")


def test_changed_data_are_refused(result, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    (folder / "report.json").unlink()
    done = json.loads((folder / "data" / "done.json").read_text())
    done["result"]["fingerprint"] = "0" * 64
    done["result_sha256"] = digest_result(done["result"])
    (folder / "data" / "done.json").write_text(json.dumps(done))
    with pytest.raises(DataError, match="data changed since"):
        run(TINY, output=folder)


def test_a_second_process_in_the_same_folder_is_refused(result, tmp_path):
    import fcntl

    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="Another process"):
            run(TINY, output=folder)


def test_a_loaded_teacher_that_does_not_fit_is_refused(tmp_path):
    import tf_keras as keras

    keras.Sequential([keras.layers.Flatten(input_shape=(8, 8, 1)), keras.layers.Dense(9)]).save(
        tmp_path / "nine.keras"
    )
    recipe = yaml.safe_load(TINY.read_text())
    recipe["teacher"] = {"load": str(tmp_path / "nine.keras")}
    with pytest.raises(ShapeMismatchError, match=r"Expected 10 classes\. Received: 9"):
        run(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_refused_before_the_data_are_read(tmp_path):
    recipe = yaml.safe_load(TINY.read_text())
    recipe["teacher"] = {"load": "nope.keras"}
    recipe["data"] = {"name": "nothing.npz"}
    with pytest.raises(ModelFileError, match=r"There is no file or folder .*nope\.keras"):
        run(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_size_is_refused_for_data_that_have_their_own(tmp_path):
    recipe = yaml.safe_load(TINY.read_text())
    recipe["data"] = {"name": "digits", "image_size": 16}
    with pytest.raises(ConfigurationError, match=r"`data\.image_size` is for a folder of images"):
        run(recipe, output=tmp_path / "run")


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A run of a folder of RGB images, named by a relative path."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label, color in (("red", (200, 60, 30)), ("blue", (30, 60, 200))):
        (folder / "imgs" / label).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(np.array(color) + random.integers(-30, 30, (16, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(
                folder / "imgs" / label / f"{number:02}.png"
            )
    recipe = yaml.safe_load(TINY.read_text())
    recipe["data"] = {"name": "./imgs"}
    recipe["variants"] = ["ptq_int8"]
    for training in (recipe["teacher"]["training"], recipe["distillation"], recipe["quantization"]):
        training.update(epochs=1, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, recipe, run(recipe, output="run")


def test_a_folder_of_images_is_enough_for_a_report(of_images):
    folder, _, _ = of_images
    report = json.loads((folder / "run" / "report.json").read_text())
    assert (folder / "run" / "report.html").is_file()
    assert report["dataset"]["sample_shape"] == [16, 16, 3]
    assert report["dataset"]["class_names"] == ["blue", "red"]
    sample = report["samples"][0]
    red, _, blue = np.array(sample["image"]).reshape(-1, 3).mean(axis=0)
    assert (red > blue) == (sample["label"] == 1)


def test_a_run_of_one_variant_trains_what_it_needs_alone(of_images):
    folder, _, result = of_images
    assert [model["key"] for model in result.report["models"]] == [
        *("teacher", "hard_labels", "ptq_int8"),
    ]
    assert list(result.report["training"]) == ["teacher", "hard_labels"]
    assert result.selection.chosen == "ptq_int8"
    assert not {"quantization", "choice"} & set(result.report)
    assert {path.name for path in (folder / "run").iterdir()} < set(RUN_FILES)
    assert not (folder / "run" / "distilled").exists()


def test_a_file_with_int4_weights_is_made_proven_and_chosen_like_the_others(tmp_path):
    recipe = yaml.safe_load(TINY.read_text())
    recipe["variants"] = ["distilled_int8", "distilled_int8x4"]
    found = run(recipe, output=tmp_path / "run")
    eight, four = (
        kdtflite.LiteModel.load(tmp_path / "run" / "files" / f"{key}.tflite")
        for key in recipe["variants"]
    )
    assert prove_target(four, "int8x4").target == "int8x4"
    assert len(four.content) < len(eight.content)
    models = {model["key"]: model for model in found.report["models"]}
    assert models["distilled_int8x4"]["label"] == "Student, distilled, QAT int8x4"
    assert set(found.report["training"]) == {
        "teacher", "distilled", "distilled_int8", "distilled_int8x4"
    }  # fmt: skip
    assert [file["key"] for file in found.report["selection"]["files"]] == recipe["variants"]
    x = kdtflite.data.load("digits", seed=7).test.x
    aware = load_model(tmp_path / "run" / "distilled_qat_int8x4" / "model.keras")
    steps = np.abs(aware.predict(x, verbose=0) - four.predict(x)) / four.outputs[0].scale
    assert steps.max() <= 3


def test_the_command_of_a_report_works_from_any_folder(of_images, monkeypatch):
    folder, recipe, result = of_images
    assert yaml.safe_load((folder / "run" / "recipe.yaml").read_text())["data"]["name"] == str(
        folder / "imgs"
    )
    command = result.report["reproduce"]["command"]
    assert command == f"kdtflite run {folder}/run/recipe.yaml --output {folder}/run-again"
    # Begun with the relative path and asked for with it again, it is the same run.
    monkeypatch.chdir(folder)
    assert run(recipe, output="run").report == result.report
