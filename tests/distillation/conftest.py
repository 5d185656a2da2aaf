"""Small models and data that the Distiller's tests share."""

import numpy as np
import pytest
import tf_keras as keras

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def dense_student(*, l2=0.0, seed=1, name="student", softmax=False, classes=3, norm=False):
    keras.utils.set_random_seed(seed)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    inputs = keras.Input((4,), name="features")
    x = L.Dense(5, kernel_regularizer=regularizer, name=f"{name}_hidden")(inputs)
    if norm:
        x = L.BatchNormalization(name=f"{name}_norm")(x)
    x = L.ReLU(name=f"{name}_relu")(x)
    outputs = L.Dense(classes, name=f"{name}_out", activation="softmax" if softmax else None)(x)
    return keras.Model(inputs, outputs, name=name)


def dense_teacher(*, classes=3, features=4, norm=True):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((features,), name="features")
    x = L.Dense(8, activation="relu")(inputs)
    if norm:
        x = L.BatchNormalization()(x)
        x = L.Dropout(0.5)(x)
    model = keras.Model(inputs, L.Dense(classes)(x), name="teacher")
    rng = np.random.default_rng(7)
    # Statistics other than the initial 0 and 1, so that a change of them shows.
    model.set_weights([rng.uniform(0.2, 1.0, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture
def data():
    """Twenty-one samples: five batches of four, and one left over."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (21, 4)).astype(np.float32)
    return x, rng.integers(0, 3, 21), rng.uniform(0.2, 3.0, 21).astype(np.float32)


@pytest.fixture
def models():
    """The constructors, as an object: `models.student(l2=0.1)`."""

    class Models:
        student = staticmethod(dense_student)
        teacher = staticmethod(dense_teacher)

    return Models
