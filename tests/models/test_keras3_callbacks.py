"""Callbacks of Keras 3 in a training with tf_keras."""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.models import to_tf_keras_callback

C = keras3.callbacks
X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def _fit(*callbacks, package=keras, epochs=3, learning_rate=0.1):
    """Fits y = w·x from w = 0; x = (1, 1), so the loss falls by a factor of 0.36 an epoch."""
    model = package.Sequential([package.Input((2,)), package.layers.Dense(1, use_bias=False)])
    model.set_weights([np.zeros((2, 1), "float32")])
    model.compile(package.optimizers.SGD(learning_rate), "mse")
    history = model.fit(
        *(X, Y), batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks),
        validation_data=(X, Y),
    )  # fmt: skip
    return model, history


@pytest.mark.parametrize(
    ("mode", "delta", "epochs"), [("min", 0.0, 9), ("auto", 0.01, None), ("max", 0.0, 3)]
)
def test_early_stopping_stops_at_the_same_epoch(mode, delta, epochs):
    def make():
        return C.EarlyStopping("val_loss", patience=2, mode=mode, min_delta=delta)

    used = make()
    _, expected = _fit(used, package=keras3, epochs=9)
    # Converted after use too: Keras 3 turns min_delta's sign while training.
    for callback in (make(), used):
        _, received = _fit(to_tf_keras_callback(callback), epochs=9)
        assert len(received.epoch) == len(expected.epoch)
        assert epochs is None or len(received.epoch) == epochs


def test_every_argument_of_early_stopping_is_kept():
    got = to_tf_keras_callback(
        C.EarlyStopping("val_loss", 0.25, 4, 1, "max", 0.5, True, start_from_epoch=6)
    )
    assert type(got) is keras.callbacks.EarlyStopping
    assert (got.monitor, got.min_delta, got.patience, got.verbose) == ("val_loss", 0.25, 4, 1)
    assert (got.monitor_op, got.baseline, got.start_from_epoch) == (np.greater, 0.5, 6)
    assert got.restore_best_weights is True


@pytest.mark.parametrize(
    ("monitor", "rises"),
    [
        ("val_loss", False),
        ("loss", False),
        ("val_sparse_categorical_accuracy", True),
        ("acc", True),
        ("val_auc_1", True),
        ("val_precision_2", True),
        ("recall", True),
        ("val_mean_squared_error", False),
        ("kullback_leibler_divergence", False),
    ],
)
def test_auto_mode_is_resolved_by_what_the_metric_means(monitor, rises):
    got = to_tf_keras_callback(C.EarlyStopping(monitor))
    assert got.monitor_op is (np.greater if rises else np.less)
    plateau = to_tf_keras_callback(C.ReduceLROnPlateau(monitor))
    assert plateau.mode == ("max" if rises else "min")


def test_auto_mode_of_an_unknown_metric_is_refused():
    with pytest.raises(ConfigurationError, match=r"EarlyStopping monitors 'val_joy'.*mode='min'"):
        to_tf_keras_callback(C.EarlyStopping("val_joy"))


def test_reduce_lr_on_plateau_reduces_as_keras3_does():
    def make():
        return C.ReduceLROnPlateau(
            "loss", factor=0.5, patience=1, mode="max", cooldown=1, min_lr=0.02, min_delta=0.3
        )

    used = make()
    expected, _ = _fit(used, package=keras3, epochs=7)
    received, _ = _fit(to_tf_keras_callback(make()), epochs=7)
    assert to_tf_keras_callback(used).min_delta == 0.3
    # the loss falls, so from the second epoch on every free epoch halves 0.1, down to 0.02
    np.testing.assert_allclose(received.optimizer.learning_rate, 0.02, rtol=1e-6)
    np.testing.assert_allclose(expected.optimizer.learning_rate, 0.02, rtol=1e-6)
    np.testing.assert_allclose(received.get_weights()[0], expected.get_weights()[0], rtol=1e-5)


def test_a_learning_rate_scheduler_sets_the_same_rates():
    callback = to_tf_keras_callback(C.LearningRateScheduler(lambda epoch, lr: lr / (epoch + 1)))
    model, _ = _fit(callback, epochs=3, learning_rate=0.6)
    np.testing.assert_allclose(model.optimizer.learning_rate, 0.1, rtol=1e-6)  # 0.6 / 1 / 2 / 3


def test_model_checkpoint_writes_the_best_weights(tmp_path):
    path = tmp_path / "best.weights.h5"
    callback = to_tf_keras_callback(
        C.ModelCheckpoint(path, "val_loss", save_best_only=True, save_weights_only=True)
    )
    model, _ = _fit(callback)
    best = model.get_weights()[0]
    model.set_weights([np.full((2, 1), 9.0)])
    model.load_weights(path)
    np.testing.assert_allclose(model.get_weights()[0], best)


def test_model_checkpoint_keeps_its_threshold_and_frequency(tmp_path):
    callback = C.ModelCheckpoint(
        tmp_path / "{epoch}.keras",
        "val_loss",
        1,
        True,
        False,
        "min",
        5,
        initial_value_threshold=0.5,
    )
    got = to_tf_keras_callback(callback)
    assert (got.best, got.save_freq, got.verbose, got.monitor_op) == (0.5, 5, 1, np.less)
    assert (got.save_best_only, got.save_weights_only) == (True, False)
    assert got.filepath.endswith("{epoch}.keras")


def test_csv_logger_writes_with_its_separator(tmp_path):
    _fit(to_tf_keras_callback(C.CSVLogger(tmp_path / "log.csv", separator=";")), epochs=2)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "epoch;loss;val_loss"
    assert len(lines) == 3


def test_the_arguments_of_tensorboard_backup_and_monitor_are_kept(tmp_path):
    board = to_tf_keras_callback(
        C.TensorBoard(tmp_path, histogram_freq=2, write_graph=False, update_freq="batch")
    )
    assert type(board) is keras.callbacks.TensorBoard
    assert (board.log_dir, board.histogram_freq, board.write_graph) == (str(tmp_path), 2, False)
    assert (board.update_freq, board._start_batch) == (1, 0)
    profiling = C.TensorBoard(tmp_path, profile_batch=(3, 5))
    got = to_tf_keras_callback(profiling)
    assert (got._start_batch, got._stop_batch) == (3, 5)
    backup = to_tf_keras_callback(
        C.BackupAndRestore(str(tmp_path), save_freq=7, delete_checkpoint=False)
    )
    assert (backup.backup_dir, backup.save_freq) == (str(tmp_path), 7)
    assert backup.delete_checkpoint is False
    remote = to_tf_keras_callback(C.RemoteMonitor("http://localhost:1", send_as_json=True))
    assert (remote.root, remote.send_as_json) == ("http://localhost:1", True)


def test_terminate_on_nan_stops_and_can_raise():
    _, history = _fit(to_tf_keras_callback(C.TerminateOnNaN()), learning_rate=np.nan, epochs=3)
    assert len(history.epoch) == 1
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        _fit(to_tf_keras_callback(C.TerminateOnNaN(raise_error=True)), learning_rate=np.nan)


def test_a_history_that_the_user_holds_is_filled():
    history = C.History()
    _, own = _fit(to_tf_keras_callback(history), epochs=2)
    assert history.epoch == [0, 1]
    np.testing.assert_allclose(history.history["loss"], own.history["loss"])


def test_lambda_callbacks_are_called():
    epochs = []
    _fit(to_tf_keras_callback(C.LambdaCallback(on_epoch_end=lambda e, logs: epochs.append(e))))
    assert epochs == [0, 1, 2]


class Recorder(C.Callback):
    def __init__(self):
        super().__init__()
        self.calls, self.models, self.types = [], set(), set()

    def _note(self, name, logs):
        self.calls.append(name)
        self.models.add(id(self.model))
        self.types |= {type(value) for value in (logs or {}).values()}


def _recording(hook, counted):
    def counted_method(self, index, logs=None):
        self._note(hook, logs)

    def method(self, logs=None):
        self._note(hook, logs)

    return counted_method if counted else method


for _moment in ("begin", "end"):
    for _phase in ("train", "test", "predict"):
        _name = f"on_{_phase}_{_moment}"
        setattr(Recorder, _name, _recording(_name, False))
        _name = f"on_{_phase}_batch_{_moment}"
        setattr(Recorder, _name, _recording(_name, True))
    setattr(Recorder, f"on_epoch_{_moment}", _recording(f"on_epoch_{_moment}", True))


def test_every_hook_reaches_a_users_own_callback():
    mine, reference = Recorder(), Recorder()
    _fit(reference, package=keras3)
    model, _ = _fit(to_tf_keras_callback(mine))
    assert mine.calls == reference.calls
    assert mine.calls.count("on_train_batch_end") == 3 * 2
    assert mine.models == {id(model)}
    assert mine.types == {float}
    assert mine.params["epochs"] == 3
    model.predict(X, verbose=0, callbacks=[to_tf_keras_callback(mine)])
    assert mine.calls[-1] == "on_predict_end"


class Meddler(C.Callback):
    def on_batch_end(self, batch, logs=None):
        self.batches = getattr(self, "batches", 0) + 1

    def on_epoch_end(self, epoch, logs=None):
        logs["joy"] = epoch + 0.5
        self.model.optimizer.learning_rate = 0.05
        self.model.stop_training = epoch == 1


def test_a_users_own_callback_acts_on_the_model_and_the_logs():
    meddler = Meddler()
    model, history = _fit(to_tf_keras_callback(meddler), epochs=5)
    assert history.history["joy"] == [0.5, 1.5]
    assert meddler.batches == 4
    np.testing.assert_allclose(model.optimizer.learning_rate, 0.05)


class MyStopping(C.EarlyStopping):
    pass


def test_a_users_own_early_stopping_works_on_a_tf_keras_model():
    callback = MyStopping("val_loss", patience=1, mode="max", restore_best_weights=True)
    model, history = _fit(to_tf_keras_callback(callback), epochs=9)
    assert len(history.epoch) == 2
    reference, _ = _fit(epochs=1)  # the highest loss was the first epoch's
    np.testing.assert_allclose(model.get_weights()[0], reference.get_weights()[0], rtol=1e-6)


@pytest.mark.parametrize("value", [None, keras.callbacks.TerminateOnNaN()])
def test_what_tf_keras_takes_passes_through(value):
    assert to_tf_keras_callback(value) is value


def test_progbar_logger_counts_steps():
    assert to_tf_keras_callback(C.ProgbarLogger()).use_steps is True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: C.SwapEMAWeights(), r"SwapEMAWeights cannot be carried over.*no such callback"),
        (lambda: C.BackupAndRestore("x", double_checkpoint=True), r"double_checkpoint=True"),
        (lambda: 3, r"Expected a callback\. Received: int"),
        (lambda: C.EarlyStopping, r"Received: the class EarlyStopping"),
        (lambda: keras3.layers.Dense(2), r"Expected a callback\. Received: Dense"),
    ],
)
def test_callbacks_that_cannot_be_carried_over_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        to_tf_keras_callback(make())
