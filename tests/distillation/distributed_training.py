"""Trains a few tiny students under a strategy and writes down what became of them.

python distributed_training.py one|mirrored|worker FILE
"""

import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

L = keras.layers


def strategy_of(mode):
    if mode == "worker":  # TF_CONFIG says which
        return tf.distribute.MultiWorkerMirroredStrategy()
    if mode == "one":
        return tf.distribute.get_strategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    half = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [half, half])
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


strategy = strategy_of(sys.argv[1])  # before anything else is done with TensorFlow

from kdtflite.distillation import Distiller  # noqa: E402
from kdtflite.distillation.losses import SoftTargets  # noqa: E402
from kdtflite.distillation.losses.features.hints import Hints  # noqa: E402
from kdtflite.distillation.search.auto import Auto  # noqa: E402
from kdtflite.distillation.search.candidates import CANDIDATES  # noqa: E402
from kdtflite.pipeline.synchronize import synchronize  # noqa: E402
from kdtflite.quantization.aware import quantize_aware  # noqa: E402

RNG = np.random.default_rng(0)
# 13 samples in batches of 6: the last batch is one sample for one replica, none for the other.
X = RNG.normal(0, 1, (13, 4)).astype("float32")
Y = RNG.integers(0, 3, 13)
WEIGHT = RNG.uniform(0.2, 3.0, 13).astype("float32")
# Batches of 5, 3 for one replica and 2 for the other, and a last one of 3 and 1. None may be empty:
# TensorFlow's convolution for CPUs (oneDNN) gives no samples a wrong shape.
IMAGES = RNG.normal(0, 1, (14, 6, 6, 1)).astype("float32")
CLASSES = RNG.integers(0, 3, 14)


def batches(*parts, size=6):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(parts).batch(size).with_options(options)


def vectors(name, width, classes=3):
    inputs = keras.Input((4,))
    hidden = L.Dense(width, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, L.Dense(classes, name="out")(hidden), name=name)


def images(name):
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = L.ReLU(name="relu")(L.BatchNormalization(momentum=0.9, name="norm")(x))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(3, name="out")(x), name=name)


def distiller_of(student, teacher, optimizer, **options):
    distiller = Distiller(student, teacher, **options)
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer, hard, ["accuracy"])
    return distiller


def linear():
    """A step of softmax regression on 5 samples, 3 for one replica and 2 for the other."""
    student = keras.Sequential([L.Dense(3, input_shape=(4,), name="out")], name="student")
    student.set_weights([np.linspace(-0.5, 0.5, 12).reshape(4, 3), np.zeros(3)])
    teacher = keras.Sequential([L.Dense(3, input_shape=(4,), name="t_out")], name="teacher")
    teacher.set_weights([np.linspace(1.0, -1.0, 12).reshape(4, 3), np.array([0.1, 0.0, -0.1])])
    options = {"losses": [SoftTargets(temperature=1.0)], "hard_label_weight": 0.3}
    distiller = distiller_of(student, teacher, keras.optimizers.SGD(0.5), **options)
    distiller.fit(batches(X[:5], Y[:5], WEIGHT[:5], size=5), verbose=0)
    return student.get_weights()


def adapted():
    """Soft targets and hints through a learned adapter, weighted samples, uneven last batches."""
    student, teacher = vectors("student", 5), vectors("teacher", 8)
    losses = [SoftTargets(temperature=2.0), Hints("hidden", "hidden")]
    distiller = distiller_of(
        *(student, teacher, keras.optimizers.SGD(0.05, momentum=0.9)),
        **{"losses": losses, "hard_label_weight": 0.3, "loss_weights": [0.7, 1.0]},
    )
    history = distiller.fit(batches(X, Y, WEIGHT), epochs=3, verbose=0).history
    logged = [np.float64(history[name]) for name in ("loss", "hints_loss", "accuracy")]
    logged += [np.float64(value) for value in distiller.evaluate(batches(X, Y, WEIGHT), verbose=0)]
    return [variable.numpy() for variable in distiller.trained_variables] + logged


def chosen():
    """What the trials of losses="auto" score, and by how many samples."""
    losses = Auto(CANDIDATES[:3], max_fraction=1.0, min_steps=1)
    optimizer = keras.optimizers.SGD(0.05)
    distiller = distiller_of(vectors("student", 5), vectors("teacher", 8), optimizer, losses=losses)
    distiller.fit(batches(X, Y), epochs=4, validation_data=batches(X, Y, size=5), verbose=0)
    trials = distiller.choice.trials
    scores = [[t.accuracy, t.log_loss, t.samples] for t in trials]
    return [np.float64(scores), *distiller.student.get_weights()]


def normalized():
    """Batch normalization and fake quantization, on parts of a batch as on the whole."""
    student = quantize_aware(images("student"), IMAGES)
    distiller = distiller_of(student, images("teacher"), keras.optimizers.SGD(0.05))
    with synchronize(student):
        distiller.fit(batches(IMAGES, CLASSES, size=5), epochs=2, verbose=0)
    return student.get_weights()


def apart():
    """Batch normalization with statistics of each replica's own."""
    student = images("student")
    distiller = distiller_of(student, images("teacher"), keras.optimizers.SGD(0.05))
    distiller.fit(batches(IMAGES, CLASSES, size=5), epochs=2, verbose=0)
    return student.get_weights()


if __name__ == "__main__":
    results = {}
    for train in (linear, adapted, chosen, normalized, apart):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            for number, values in enumerate(train()):
                results[f"{train.__name__}/{number}"] = values
    np.savez(sys.argv[2], **results)
