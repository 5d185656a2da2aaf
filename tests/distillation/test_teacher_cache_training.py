"""Training on a cache is training with the live teacher, without the teacher."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import training_batches
from kdtflite.data.splits import Split
from kdtflite.distillation import Distiller
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.errors import ConfigurationError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (26, 6, 6, 1)).astype(np.float32)
Y = RNG.integers(0, 3, 26)
MOVED = Augmentation(shift=1.0, rotation=10.0, flip=True)


def net(name, width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(width, 3, activation="relu", name=f"{name}_maps")(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)), name=name)


def trained(teacher, batches, *, epochs, steps, hints=False):
    student = net("student", 3, seed=5)
    losses, loss_weights = [SoftTargets(temperature=2.0)], [0.7]
    if hints:
        losses.append(Hints("student_maps", "teacher_maps"))
        loss_weights.append(1.0)  # the default of 200 diverges at this learning rate
    distiller = Distiller(
        student, teacher, losses=losses, hard_label_weight=0.3, loss_weights=loss_weights
    )
    distiller.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = distiller.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=0)
    return student.get_weights(), history.history


@pytest.mark.parametrize("hints", [False, True])
def test_training_on_a_cache_gives_the_weights_of_a_live_teacher(tmp_path, hints):
    teacher = net("teacher", 5, seed=9)
    split = Split(X, Y)
    # Written in the batches' size, so that the same kernels run; the order is the training's.
    cache = cache_teacher(teacher, split, tmp_path / "c", layers=["teacher_maps"], batch_size=8)
    live = training_batches(split, batch_size=8, epochs=4, seed=3)
    cached = cache.batches(split, batch_size=8, epochs=4, seed=3)
    expected, expected_logs = trained(teacher, live, epochs=4, steps=3, hints=hints)
    weights, logs = trained(cache, cached, epochs=4, steps=3, hints=hints)
    for got, wanted in zip(weights, expected, strict=True):
        assert np.abs(wanted).max() < 10
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    assert logs.keys() == expected_logs.keys()
    for name, values in expected_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5)


def test_training_on_views_gives_the_weights_of_a_live_teacher_shown_the_same_views(tmp_path):
    teacher = net("teacher", 5, seed=9)
    cache = cache_teacher(teacher, (X, Y), tmp_path / "c", views=3, augmentation=MOVED)
    cached = cache.batches((X, Y), batch_size=8, epochs=4)
    live = cached.map(lambda taught, y: (taught.inputs, y))
    expected, _ = trained(teacher, live, epochs=4, steps=3)
    weights, _ = trained(cache, cached, epochs=4, steps=3)
    for got, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_training_on_plain_samples_with_a_cache_is_refused(tmp_path):
    cache = cache_teacher(net("teacher", 5, seed=9), (X, Y), tmp_path / "c")
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    # Raised while Keras compiles the step, which may wrap it.
    with pytest.raises(Exception, match=r"Train on cache.batches\(...\)"):
        trained(cache, plain.repeat(), epochs=1, steps=3)
    with pytest.raises(ConfigurationError, match=r"does not hold .*teacher_maps.*logits alone"):
        trained(cache, plain, epochs=1, steps=3, hints=True)


MIRRORED = """
import sys
import numpy as np, tensorflow as tf, tf_keras as keras
cpu = tf.config.list_physical_devices("CPU")[0]
half = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
sys.path.insert(0, sys.argv[1])
import test_teacher_cache_training as t

folder = sys.argv[2]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
runs = []
for name, scope in (("one", tf.distribute.get_strategy()), ("two", strategy)):
    with scope.scope():
        teacher = t.net("teacher", 5, seed=9)
        cache = t.cache_teacher(
            teacher, (t.X, t.Y), f"{folder}/{name}", views=2, augmentation=t.MOVED, batch_size=7
        )
        batches = cache.batches((t.X, t.Y), batch_size=8, epochs=2, drop_remainder=DROP)
        steps = cache.steps_per_epoch(8, drop_remainder=DROP)
        weights, logs = t.trained(cache, batches, epochs=2, steps=steps)
    stored = [np.load(f"{folder}/{name}/view00{view}-00000/logits.npy") for view in (0, 1)]
    runs.append((*stored, *weights))
for one, two in zip(*runs, strict=True):
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
print("alike")
"""


@pytest.mark.parametrize("drop", [True, False])
def test_replicas_write_and_train_as_one_device_does(tmp_path, drop):
    script = MIRRORED.replace("DROP", str(drop))
    command = [sys.executable, "-c", script, __file__.rpartition("/")[0], str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip().endswith("alike"), done.stderr[-3000:]
