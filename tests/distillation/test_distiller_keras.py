"""The Distiller among Keras' own tools: callbacks, files, resuming, replicas, Keras 3 objects."""

import csv
import subprocess
import sys
import textwrap
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import Hints
from kdtflite.errors import ConfigurationError

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def compile_distiller(student, teacher, optimizer="adam", **kwargs):
    distiller = Distiller(student, teacher)
    distiller.compile(optimizer, CrossEntropy(from_logits=True), ["accuracy"], **kwargs)
    return distiller


def assert_same(weights, others, **tolerance):
    assert len(weights) == len(others)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


def test_early_stopping_restores_the_students_best_weights(data, models):
    x, y, _ = data
    student = models.student()
    distiller = compile_distiller(student, models.teacher(), keras.optimizers.SGD(0.5))
    seen = []
    remember = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((logs["val_loss"], student.get_weights()))
    )
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    distiller.fit(
        x, y, epochs=60, validation_data=(x[:6], y[:6]), callbacks=[remember, stop], verbose=0
    )
    assert len(seen) < 60
    assert_same(student.get_weights(), min(seen, key=lambda pair: pair[0])[1])


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_model_checkpoint_keeps_the_student(data, models, tmp_path, ending):
    x, y, _ = data
    student = models.student(norm=True)
    distiller = compile_distiller(student, models.teacher())
    path = str(tmp_path / f"best{ending}")
    distiller.fit(x, y, callbacks=[keras.callbacks.ModelCheckpoint(path)], verbose=0)
    loaded = keras.models.load_model(path, compile=False)
    assert loaded.count_params() == student.count_params()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), student.predict(x, verbose=0))


@pytest.mark.parametrize("name", ["best.weights.h5", "best.h5", "best.ckpt"])
def test_model_checkpoint_of_weights_loads_again(data, models, tmp_path, name):
    x, y, _ = data
    distiller = compile_distiller(models.student(norm=True), models.teacher())
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / name), save_weights_only=True)
    distiller.fit(x, y, callbacks=[checkpoint], verbose=0)
    # Another teacher: the weights are none of its business.
    fresh = compile_distiller(models.student(norm=True, seed=5), models.teacher(norm=False))
    fresh.load_weights(tmp_path / name)
    assert_same(fresh.get_weights(), distiller.get_weights())


def test_csv_logger_and_learning_rate_scheduler(data, models, tmp_path):
    x, y, _ = data
    distiller = compile_distiller(models.student(), models.teacher())
    history = distiller.fit(
        x,
        y,
        epochs=3,
        callbacks=[
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        ],
        verbose=0,
    ).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "hard_labels_loss", "soft_targets_loss", "regularization_loss"):
        np.testing.assert_allclose([float(row[name]) for row in rows], history[name], rtol=1e-6)
    np.testing.assert_allclose(float(distiller.optimizer.learning_rate), 0.1 / 3, rtol=1e-6)


def test_tensorboard_shows_each_loss_term_by_name(data, models, tmp_path):
    x, y, _ = data
    distiller = compile_distiller(models.student(l2=0.1), models.teacher())
    board = keras.callbacks.TensorBoard(tmp_path)
    history = distiller.fit(
        x, y, epochs=2, callbacks=[board], validation_data=(x, y), verbose=0
    ).history
    shown = {}
    for file in (tmp_path / "train").glob("events.out.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tag.startswith("epoch_"):
                    shown.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    for name in ("loss", "hard_labels_loss", "soft_targets_loss", "regularization_loss"):
        np.testing.assert_allclose(shown[f"epoch_{name}"], history[name], rtol=1e-6)


def train_in_batches(distiller, data, epochs, initial_epoch=0, callbacks=None):
    x, y, _ = data
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    distiller.fit(
        dataset, epochs=epochs, initial_epoch=initial_epoch, callbacks=callbacks, verbose=0
    )
    return distiller


@pytest.mark.parametrize("how", ["weights.h5", "checkpoint"])
def test_training_resumed_with_its_optimizer_equals_uninterrupted(data, models, tmp_path, how):
    whole = train_in_batches(
        compile_distiller(models.student(norm=True), models.teacher()), data, 4
    )
    first = train_in_batches(
        compile_distiller(models.student(norm=True), models.teacher()), data, 2
    )
    second = compile_distiller(models.student(norm=True, seed=9), models.teacher())
    if how == "checkpoint":
        saved = tf.train.Checkpoint(model=first.student, optimizer=first.optimizer)
        path = saved.save(tmp_path / "state")
        second.optimizer.build(second.trainable_variables)
        restored = tf.train.Checkpoint(model=second.student, optimizer=second.optimizer)
        restored.restore(path).assert_existing_objects_matched()
    else:
        first.save_weights(tmp_path / "state.weights.h5")
        second.optimizer.build(second.trainable_variables)
        second.load_weights(tmp_path / "state.weights.h5")
    assert int(second.optimizer.iterations) == 12
    train_in_batches(second, data, 4, initial_epoch=2)
    assert_same(second.get_weights(), whole.get_weights(), rtol=1e-6, atol=1e-7)
    assert np.abs(first.get_weights()[0] - whole.get_weights()[0]).max() > 1e-3


def test_backup_and_restore_goes_on_where_it_was_cut_off(data, models, tmp_path):
    class Power(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path))

    whole = train_in_batches(compile_distiller(models.student(), models.teacher()), data, 4)
    cut = compile_distiller(models.student(), models.teacher())
    with pytest.raises(KeyboardInterrupt):
        train_in_batches(cut, data, 4, callbacks=[backup(), Power()])
    again = compile_distiller(models.student(seed=9), models.teacher())
    train_in_batches(again, data, 4, callbacks=[backup()])
    assert int(again.optimizer.iterations) == 24
    assert_same(again.get_weights(), whole.get_weights(), rtol=1e-6, atol=1e-7)


def test_backup_and_restore_keeps_what_losses_train(data, models, tmp_path):
    class Power(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def distiller(seed=1):
        student, teacher = models.student(seed=seed), models.teacher()
        taps = "student_relu", teacher.layers[1].name
        keras.utils.set_random_seed(seed)
        distiller = Distiller(student, teacher, losses=[Hints(*taps, adapter="always")])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return distiller

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path))

    whole, cut, again = distiller(), distiller(), distiller(seed=9)
    train_in_batches(whole, data, 4)
    with pytest.raises(KeyboardInterrupt):
        train_in_batches(cut, data, 4, callbacks=[backup(), Power()])
    train_in_batches(again, data, 4, callbacks=[backup()])
    assert int(again.optimizer.iterations) == 24
    assert len(again.trained_variables) == len(again.student.trainable_variables) + 2
    for one, other in zip(again.trained_variables, whole.trained_variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_replicas_train_as_one_device_does_with_an_uneven_last_batch(tmp_path):
    # A process of its own: logical devices can only be made before TensorFlow starts.
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        import tensorflow as tf
        import tf_keras as keras
        sys.path.insert(0, FOLDER)
        from conftest import dense_student, dense_teacher
        from kdtflite.distillation import Distiller

        cpu = tf.config.list_physical_devices("CPU")[0]
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        rng = np.random.default_rng(0)
        # 13 samples in batches of 6: in the last batch one replica has a sample, the other none.
        x = rng.normal(0, 1, (13, 4)).astype("float32")
        y, weights = rng.integers(0, 3, 13), rng.uniform(0.2, 3.0, 13).astype("float32")
        results = []
        for scope in (tf.distribute.get_strategy(), strategy):
            teacher = dense_teacher()
            with scope.scope():
                student = dense_student(l2=0.02)
                distiller = Distiller(student, teacher)
                distiller.compile(
                    keras.optimizers.SGD(0.1),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    ["accuracy"],
                )
            data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(6)
            history = distiller.fit(data, epochs=2, verbose=0).history
            logs = distiller.evaluate(data, verbose=0, return_dict=True)
            results.append((distiller.get_weights(), history, logs))
        (one, history_one, logs_one), (two, history_two, logs_two) = results
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert history_one.keys() == history_two.keys()
        for name in history_one:
            if name != "regularization_loss":
                np.testing.assert_allclose(history_one[name], history_two[name], rtol=1e-4)
        for name in logs_one:
            np.testing.assert_allclose(logs_one[name], logs_two[name], rtol=1e-4)
        print("alike")
        """
    ).replace("FOLDER", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("alike\n"), done.stderr[-3000:]


def test_keras3_objects_train_as_their_tf_keras_counterparts(data, models):
    x, y, _ = data
    epochs = []

    class Note(keras3.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append((epoch, logs["soft_targets_loss"]))

        def on_test_end(self, logs=None):
            epochs.append("evaluated")

        def on_predict_end(self, logs=None):
            epochs.append("predicted")

    ours = Distiller(models.student(), models.teacher())
    ours.compile(
        keras.optimizers.Adam(0.01, beta_1=0.8),
        CrossEntropy(from_logits=True),
        [keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    theirs = Distiller(models.student(), models.teacher())
    theirs.compile(
        keras3.optimizers.Adam(0.01, beta_1=0.8),
        keras3.losses.SparseCategoricalCrossentropy(from_logits=True),
        [keras3.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    histories = [
        d.fit(x, y, batch_size=4, shuffle=False, callbacks=callbacks, verbose=0).history
        for d, callbacks in ((ours, None), (theirs, Note()))
    ]
    assert_same(theirs.get_weights(), ours.get_weights(), rtol=1e-6, atol=1e-7)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)
    theirs.evaluate(x, y, callbacks=[Note()], verbose=0)
    theirs.predict(x, callbacks=[Note()], verbose=0)
    assert epochs == [(0, histories[1]["soft_targets_loss"][0]), "evaluated", "predicted"]


def test_keras3_models_are_taken(data):
    x, y, _ = data
    k = keras3.layers
    student = keras3.Sequential([k.Input((4,)), k.Dense(6, activation="relu"), k.Dense(3)])
    teacher = keras3.Sequential([k.Input((4,)), k.Dense(9, activation="tanh"), k.Dense(3)])
    distiller = compile_distiller(student, teacher)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), student(x), atol=1e-6)
    np.testing.assert_allclose(distiller.teacher(x), teacher(x), atol=1e-6)
    before = [np.array(weight) for weight in student.get_weights()]
    distiller.fit(x, y, verbose=0)
    assert isinstance(distiller.student, keras.Model)
    assert_same([np.array(weight) for weight in student.get_weights()], before)


def test_keras3_objects_without_a_counterpart_are_refused_by_name(data, models):
    x, y, _ = data
    distiller = Distiller(models.student(), models.teacher())

    class OwnLoss(keras3.losses.Loss):
        def call(self, y_true, y_pred):
            return y_pred[:, 0]

    class OwnOptimizer(keras3.optimizers.SGD):
        pass

    class OwnMetric(keras3.metrics.Mean):
        pass

    loss = CrossEntropy(from_logits=True)
    for arguments, name in (
        ({"loss": OwnLoss()}, "OwnLoss"),
        ({"loss": loss, "optimizer": OwnOptimizer()}, "OwnOptimizer"),
        ({"loss": loss, "metrics": [OwnMetric()]}, "OwnMetric"),
        ({"loss": loss, "weighted_metrics": [OwnMetric()]}, "OwnMetric"),
    ):
        with pytest.raises(ConfigurationError, match=name):
            distiller.compile(**arguments)
    distiller.compile("adam", loss)
    for run in (
        lambda: distiller.fit(x, y, callbacks=[keras3.callbacks.SwapEMAWeights()]),
        lambda: distiller.evaluate(x, y, callbacks=[keras3.callbacks.SwapEMAWeights()]),
        lambda: distiller.predict(x, callbacks=[keras3.callbacks.SwapEMAWeights()]),
    ):
        with pytest.raises(ConfigurationError, match="SwapEMAWeights"):
            run()
