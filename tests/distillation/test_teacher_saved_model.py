"""A SavedModel as a teacher: of a tf.Module, of Keras 2 and of Keras 3."""

import contextlib
import shutil

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.teachers.saved_model import SavedModelTeacher
from kdtflite.errors import ConfigurationError, ModelFileError, ShapeMismatchError

L = keras.layers
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (4, 3)).astype(np.float32)
X = RNG.normal(0, 1, (7, 4)).astype(np.float32)
ENDS = {
    "logits": tf.identity,
    "probabilities": tf.nn.softmax,
    "sigmoid": tf.sigmoid,
}


class Linear(tf.Module):
    def __init__(self, end=tf.identity, batch=None, dtype=tf.float32):
        super().__init__()
        self.w = tf.Variable(W)
        self.end = end
        self.call = tf.function(self._call, input_signature=[tf.TensorSpec((batch, 4), dtype, "x")])

    def _call(self, x):
        return self.inner(tf.cast(x, tf.float32))

    @tf.function
    def inner(self, x):
        return {"scores": self.end(x @ self.w)}


def saved(folder, *args, **kwargs):
    module = Linear(*args, **kwargs)
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


def student(features=4, classes=3):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((features,), name="x"), L.Dense(classes)])


@pytest.mark.parametrize("end", ENDS)
def test_what_a_signature_gives_is_read_off_its_end_and_turned_into_logits(tmp_path, end):
    teacher = SavedModelTeacher(saved(tmp_path / "teacher", ENDS[end]))
    assert (teacher.outputs, teacher.output_shape) == (end, (None, 3))
    z = np.float64(X) @ W
    expected = log_softmax(z, axis=-1) if end == "probabilities" else z
    step = tf.function(
        lambda x: teacher.observe(x).logits, input_signature=[tf.TensorSpec((None, 4))]
    )
    np.testing.assert_allclose(step(X), expected, rtol=1e-4, atol=1e-5)
    assert step(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("end", ["probabilities", "sigmoid"])
def test_a_signature_that_shows_no_logits_is_not_believed_to_give_them(tmp_path, end):
    folder = saved(tmp_path / "teacher", ENDS[end])
    with pytest.raises(ConfigurationError, match=rf'are logits.*Pass outputs="{end}" or "auto"'):
        SavedModelTeacher(folder, outputs="logits")
    assert SavedModelTeacher(folder, outputs=end).outputs == end


def test_a_student_learns_and_neither_gradient_nor_checkpoint_reaches_the_teacher(tmp_path):
    teacher = SavedModelTeacher(saved(tmp_path / "teacher"))
    distiller = Distiller(student(), teacher, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05))
    history = distiller.fit(X, np.zeros(7, np.int64), batch_size=4, epochs=20, verbose=0).history
    assert history["soft_targets_loss"][-1] < 0.5 * history["soft_targets_loss"][0]
    np.testing.assert_allclose(teacher(X), np.float64(X) @ W, rtol=1e-5, atol=1e-5)
    assert len(distiller.weights) == 2


def test_gradients_by_the_inputs_flow_through_it_where_they_are_asked_for(tmp_path):
    teacher = SavedModelTeacher(saved(tmp_path / "teacher"), preprocessing=lambda x: 3.0 * x)
    with contextlib.ExitStack() as recording:
        seen = teacher.observe(tf.constant(X), recording)
        gradient = seen.input_gradient(seen.logits[:, 1])
    np.testing.assert_allclose(gradient, np.tile(3 * W[:, 1], (7, 1)), rtol=1e-5)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = teacher.observe(x).logits
    assert tape.gradient(logits, x) is None


def test_a_keras_2_saved_model_is_taken_as_the_model_that_it_is(tmp_path):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, activation="softmax")])
    model.save(tmp_path / "keras2", save_format="tf")
    teacher = as_teacher(tmp_path / "keras2")
    assert isinstance(teacher, ModelTeacher)
    by_signature = SavedModelTeacher(tmp_path / "keras2")
    assert by_signature.outputs == teacher.outputs == "probabilities"
    np.testing.assert_allclose(by_signature(X), teacher(X), rtol=1e-5, atol=1e-6)


def test_a_keras_2_saved_model_of_unknown_layers_is_run_by_its_signature(tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), L.Lambda(lambda x: 2.0 * x), L.Dense(3)])
    model.save(tmp_path / "lambda", save_format="tf")
    teacher = as_teacher(tmp_path / "lambda")
    assert isinstance(teacher, SavedModelTeacher)
    assert "runs by its signature" in capsys.readouterr().err
    np.testing.assert_allclose(teacher(X), model(X), rtol=1e-5, atol=1e-6)


def test_a_keras_3_export_teaches(tmp_path):
    model = keras3.Sequential(
        [keras3.Input((4,)), keras3.layers.Dense(3, activation="softmax", name="out")]
    )
    model.export(tmp_path / "keras3", verbose=False)
    teacher = as_teacher(tmp_path / "keras3")
    assert isinstance(teacher, SavedModelTeacher)
    assert teacher.outputs == "probabilities"
    teacher.check_inputs(student())
    np.testing.assert_allclose(tf.exp(teacher(X)), np.asarray(model(X)), rtol=1e-5)


def test_signatures_and_outputs_are_chosen_by_name(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None, 4))])
        def call(self, left, right):
            return {"a": left - right, "b": tf.nn.softmax(left @ W)}

    module = Two()
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"first": module.call})
    with pytest.raises(ConfigurationError, match=r"no signature in .* 'serving_default'.*: first"):
        SavedModelTeacher(tmp_path / "two")
    with pytest.raises(ConfigurationError, match=r"2 outputs.*one of: a, b"):
        SavedModelTeacher(tmp_path / "two", signature="first")
    with pytest.raises(ConfigurationError, match=r"does not show"):
        SavedModelTeacher(tmp_path / "two", signature="first", output="a")
    teacher = SavedModelTeacher(tmp_path / "two", signature="first", output="a", outputs="values")
    np.testing.assert_allclose(teacher({"right": X, "left": 3 * X}), 2 * X, rtol=1e-6)
    with pytest.raises(ConfigurationError, match=r"named left, right"):
        teacher((X, X))


def test_inputs_that_it_cannot_take_are_refused(tmp_path):
    teacher = SavedModelTeacher(saved(tmp_path / "any"))
    with pytest.raises(
        ShapeMismatchError, match=r"teacher input \(None, 4\), student input \(None, 5"
    ):
        Distiller(student(5), teacher)
    with pytest.raises(ShapeMismatchError, match=r"different numbers of classes"):
        Distiller(student(classes=2), teacher)
    with pytest.raises(ShapeMismatchError, match=r"batches of exactly 1"):
        Distiller(student(), SavedModelTeacher(saved(tmp_path / "one", batch=1)))
    pixels = SavedModelTeacher(saved(tmp_path / "pixels", dtype=tf.uint8))
    with pytest.raises(
        ConfigurationError, match=r"takes uint8\. Received: float32.*preprocessing="
    ):
        pixels(X)
    np.testing.assert_allclose(teacher(X.astype(np.float64)), X @ W, rtol=1e-4, atol=1e-5)


def test_folders_that_are_no_saved_model_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"Expected a SavedModel folder"):
        SavedModelTeacher(tmp_path)
    folder = saved(tmp_path / "damaged")
    shutil.rmtree(folder / "variables")
    with pytest.raises(ModelFileError, match=r"could not be loaded"):
        SavedModelTeacher(folder)
    (folder / "saved_model.pb").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"could not be loaded"):
        SavedModelTeacher(folder)
    bare = tmp_path / "bare"
    tf.saved_model.save(tf.Module(), str(bare))
    with pytest.raises(ConfigurationError, match=r"has no signatures"):
        SavedModelTeacher(bare)


def test_a_graph_that_reaches_files_is_refused_before_it_is_loaded(tmp_path):
    def spy(x):
        tf.io.write_file(str(tmp_path / "spied"), "x")
        return tf.identity(x @ W)

    folder = saved(tmp_path / "spy", lambda z: tf.identity(spy(tf.pad(z, [[0, 0], [0, 1]]))))
    with pytest.raises(ModelFileError, match=r"uses WriteFile.*unsafe=True"):
        SavedModelTeacher(folder, outputs="logits")
    assert SavedModelTeacher(folder, outputs="logits", unsafe=True).output_shape == (None, 3)


def test_the_fingerprint_is_that_of_the_files(tmp_path):
    folder = saved(tmp_path / "teacher")
    first = SavedModelTeacher(folder).fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert first == SavedModelTeacher(moved).fingerprint()
    other = SavedModelTeacher(saved(tmp_path / "other", tf.sigmoid)).fingerprint()
    assert len(first) == 64
    assert first != other
