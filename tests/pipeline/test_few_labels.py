"""Few labels in a run: the teacher alone teaches on the samples without one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from pipeline_data import dataset, kill_after, teacher

import kdtflite.pipeline.choosing as choosing
from kdtflite.data.unlabeled import hide_labels
from kdtflite.distillation.search.auto import Auto
from kdtflite.distillation.search.candidates import CANDIDATES
from kdtflite.pipeline.recipe import TrainingRecipe, load_recipe
from kdtflite.pipeline.samples import TrainingSamples, make_labels
from kdtflite.pipeline.stages import STAGES, Run

FEW = hide_labels(dataset(), 0.25, seed=0)
SMOOTHED = TrainingRecipe(epochs=2, batch_size=16, learning_rate=0.1, label_smoothing=0.1)


def test_the_labeled_samples_alone_make_as_many_steps_as_all():
    labeled, everything = TrainingSamples.take_labeled(FEW), TrainingSamples.take_all(FEW)
    assert (len(labeled.x), labeled.passes, labeled.count_steps(16)) == (24, 4, 6)
    assert (len(everything.x), everything.passes, everything.count_steps(16)) == (96, 1, 6)
    np.testing.assert_array_equal(everything.y[24:], -1)
    np.testing.assert_array_equal(everything.y[:24], labeled.y)
    whole = TrainingSamples.take_labeled(dataset())
    assert (len(whole.x), whole.passes) == (96, 1)


@pytest.mark.parametrize("share", [None, 1])
def test_all_samples_keep_their_label_by_default_and_with_a_share_of_one(tmp_path, share):
    recipe = load_recipe("digits").model_dump()
    recipe["data"]["labeled"] = share
    data = Run(load_recipe(recipe), tmp_path, {}).dataset
    assert (len(data.train), data.unlabeled) == (1146, None)


def test_a_smoothed_label_that_is_missing_is_a_row_that_says_so():
    rows = make_labels(np.array([2, -1]), 3, SMOOTHED)
    np.testing.assert_array_equal(rows, [[0, 0, 1], [-1, -1, -1]])
    batches = TrainingSamples.take_all(FEW).make_batches(SMOOTHED, seed=1, epochs=1)
    assert sum(int((y.numpy() == -1).all(axis=1).sum()) for _, y in batches) == 72


def distill(folder, **keys):
    """Runs the stage that distills the float student, and returns its result and weights."""
    tf.config.experimental.enable_op_determinism()
    stage = {"epochs": 6, "batch_size": 16, "learning_rate": 0.05, **keys}
    recipe = load_recipe(
        {
            "name": "few",
            "data": {"name": "digits"},  # replaced below
            "teacher": {"load": "teacher.keras"},
            "student": {"architecture": "convnet", "widths": [4, 4]},
            "distillation": stage,
        }
    )
    for name in ("teacher", "distilled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    teacher().save(folder / "teacher" / "model.keras")
    run = Run(recipe, folder, {"teacher": {"model": "model.keras"}})
    run.__dict__["dataset"] = FEW
    (work,) = (stage.work for stage in STAGES if stage.name == "distilled")
    result = work(run)
    run.results["distilled"] = result
    return result, run.read_model("distilled").get_weights()


AIDS = {
    "temperature": 2,
    "cached_views": 2,
    "augmentation": {"crop": 1},
    "label_smoothing": 0.1,
    "optimizer": "sgd",
    "batch_norm_batches": 2,
}


def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path):
    undisturbed, weights = distill(tmp_path / "one", **AIDS)
    assert undisturbed["training"]["history"]["accepted_share"] == [1.0] * 6
    with kill_after(2):
        distill(tmp_path / "two", **AIDS)
    keras.backend.clear_session()
    cache = tmp_path / "two" / "distilled" / "checkpoint" / "teacher"
    written = (cache / "manifest.json").stat().st_mtime_ns
    resumed, again = distill(tmp_path / "two", **AIDS)
    assert resumed == undisturbed
    assert (cache / "manifest.json").stat().st_mtime_ns == written  # opened, not made again
    for own, other in zip(again, weights, strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_losses_can_be_chosen_and_the_hard_labels_are_the_few(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "Auto", lambda: Auto(CANDIDATES[:2], min_steps=10))
    result, _ = distill(tmp_path, epochs=20)
    trials = result["choice"]["trials"]
    assert [trial["candidate"] for trial in trials] == [c.name for c in CANDIDATES[:2]]
    # An epoch is one of all 96 samples, of which 24 have a label.
    assert (result["choice"]["steps"], trials[0]["steps"]) == (20 * 6, 20)
    assert len(result["training"]["epochs"]) == 20
