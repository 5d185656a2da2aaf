"""How good the teacher is on the first samples is printed at the first fit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.distillation import Distiller
from kdtflite.distillation.mixing import MixUp
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller

L = keras.layers
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (400, 3)).astype(np.float32)
Y = X.argmax(axis=-1)
# Right for three of four among the first 256 samples, and wrong for all after them.
LABELS = np.where((np.arange(400) % 4 == 3) | (np.arange(400) >= 256), (Y + 1) % 3, Y)
IN_ORDER = {"shuffle": False, "verbose": 0}


def identity(scale=1.0, name="oracle", units=3):
    model = keras.Sequential([keras.Input((3,)), L.Dense(units)], name=name)
    model.set_weights([scale * np.eye(3)[:, :units], np.zeros(units)])
    return model


def student(units=3):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((3,)), L.Dense(units)], name="student")


def build(teacher, loss=SPARSE, **options):
    distiller = Distiller(student(), teacher, **options)
    distiller.compile(keras.optimizers.SGD(0.0), loss)
    return distiller


class Batches(keras.utils.Sequence):
    def __len__(self):
        return 50

    def __getitem__(self, i):
        return X[8 * i : 8 * i + 8], LABELS[8 * i : 8 * i + 8]


@pytest.mark.parametrize("kind", ["arrays", "dataset", "sequence", "generator", "endless"])
def test_the_share_of_right_answers_on_the_first_batches_is_printed_once(capsys, kind):
    distiller = build(identity())
    batches = tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(8)

    def fit():
        if kind == "arrays":
            return distiller.fit(X, LABELS, 8, **IN_ORDER)
        data = {
            "dataset": batches,
            "endless": batches.repeat(),
            "sequence": Batches(),
            "generator": (Batches()[i] for i in range(50)),
        }[kind]
        options = {"steps_per_epoch": 50} if kind == "endless" else {}
        return distiller.fit(data, **IN_ORDER, **options)

    fit()
    said = capsys.readouterr().err
    assert "The teacher 'oracle' is right on 75.0% of the first 64 training labels." in said
    fit()
    assert "is right on" not in capsys.readouterr().err


def test_a_teacher_without_its_preprocessing_is_pointed_at(capsys):
    build(identity(-1.0)).fit(X, Y, verbose=0)  # the least likely class
    said = capsys.readouterr().err
    assert "is right on 0.0% of the first 256 training labels. If it should be better" in said
    assert "teacher_preprocessing=" in said
    build(identity(-1.0), teacher_preprocessing=lambda x: -x).fit(X, Y, verbose=0)
    said = capsys.readouterr().err
    assert "right on 100.0%" in said
    assert "teacher_preprocessing" not in said


def test_one_hot_labels_void_ones_and_a_cache(capsys, tmp_path):
    categorical = keras.losses.CategoricalCrossentropy(from_logits=True)
    build(identity(), categorical).fit(X, np.eye(3)[LABELS], **IN_ORDER)
    assert "right on 75.0% of the first 256" in capsys.readouterr().err
    void = np.where(np.arange(400) % 2, LABELS, -1)  # the odd ones: half of them right
    semi = SemiSupervisedDistiller(student(), identity())
    semi.compile("sgd", SPARSE)
    semi.fit(X, void, **IN_ORDER)
    assert "right on 50.0% of the first 128" in capsys.readouterr().err
    cache = kdtflite.cache_teacher(identity(), (X, LABELS), tmp_path / "cache")
    build(cache).fit(cache.batches((X, LABELS), batch_size=32, shuffle=False), verbose=0)
    assert "right on 75.0% of the first 256" in capsys.readouterr().err


def test_yes_or_no_values_and_several_tasks(capsys):
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    build(identity(), binary, task="multilabel").fit(X, (X > 0).astype(int), verbose=0)
    assert "right on 100.0% of the first 768 training labels" in capsys.readouterr().err
    options = {"task": "regression", "losses": [kdtflite.losses.RegressionDistillation()]}
    build(identity(), "mse", **options).fit(X, X + 0.5, verbose=0)
    said = capsys.readouterr().err
    assert "'oracle' has a mean squared error of 0.25 on the first 768 training values." in said
    inputs = keras.Input((3,))
    heads = [L.Dense(3, name=name)(inputs) for name in ("kind", "color")]
    tasks = MultiTaskDistiller(keras.Model(inputs, heads), {"color": identity(name="colors")})
    tasks.compile("sgd", SPARSE)
    tasks.fit(X, {"kind": Y, "color": LABELS}, **IN_ORDER)
    assert "'colors' is right on 75.0% of the first 256" in capsys.readouterr().err


def test_nothing_is_said_without_labels_or_losses_or_of_mixed_samples(capsys):
    alone = build(identity(), None, hard_label_weight=0.0)
    alone.fit(X, verbose=0)
    build(identity(), losses=[]).fit(X, Y, verbose=0)
    build(identity(), mixing=MixUp()).fit(X, Y, verbose=0)
    assert "is right on" not in capsys.readouterr().err
