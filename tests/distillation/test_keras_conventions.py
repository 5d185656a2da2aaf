"""What one may give any Keras model: data sets, dicts, files of weights, configurations."""

import inspect
import json

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite import losses
from kdtflite.distillation import Distiller
from kdtflite.distillation.losses.base import DistillationLoss, LogitsLoss
from kdtflite.distillation.schedules import Linear
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError, UnsupportedModelError

L = keras.layers
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(models, way=Distiller, seed=1, **options):
    distiller = way(models.student(seed=seed), models.teacher(), **options)
    distiller.compile(keras.optimizers.Adam(0.01), SPARSE, ["accuracy"])
    return distiller


class Batches(keras3.utils.PyDataset):
    """Three batches of seven, as arrays and tensors."""

    def __init__(self, x, y, count=3):
        super().__init__()
        self.x, self.y, self.count, self.epochs = x, y, count, 0

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, i):
        rows = slice(7 * (i % 3), 7 * (i % 3) + 7)
        return self.x[rows], tf.constant(self.y[rows])

    def on_epoch_end(self):
        self.epochs += 1


def test_a_pydataset_trains_evaluates_and_predicts_as_its_arrays(data, models):
    x, y, _ = data
    one, other = build(models), build(models)
    expected = one.fit(x, y, 7, epochs=2, shuffle=False, validation_data=(x, y), verbose=0).history
    batches = Batches(x, y)
    found = other.fit(
        batches, epochs=2, shuffle=False, validation_data=Batches(x, y), verbose=0
    ).history
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    assert batches.epochs == 2
    np.testing.assert_allclose(
        other.evaluate(Batches(x, y), verbose=0), one.evaluate(x, y, verbose=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        other.predict(Batches(x, y), verbose=0), one.predict(x, verbose=0), rtol=1e-3, atol=1e-5
    )


def test_an_endless_pydataset_needs_a_number_of_steps(data, models):
    x, y, _ = data
    history = build(models).fit(Batches(x, y, None), steps_per_epoch=4, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


def test_data_of_another_kind_are_named(data, models):
    class DataLoader:
        def __iter__(self):
            return iter([data[:2]])

    for run in ("fit", "evaluate", "predict"):
        with pytest.raises(
            DataError, match=r"Expected arrays, .*PyDataset.*Received: a DataLoader\. Pass"
        ):
            getattr(build(models), run)(DataLoader(), verbose=0)


def test_an_endless_dataset_is_refused_where_nothing_ends_it(data, models):
    x, y, _ = data
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(7).repeat()
    distiller = build(models)
    with pytest.raises(
        ConfigurationError, match=r"steps_per_epoch= for a tf\.data\.Dataset that never"
    ):
        distiller.fit(endless, verbose=0)
    with pytest.raises(ConfigurationError, match="validation_steps= for"):
        distiller.fit(x, y, validation_data=endless, verbose=0)
    for run in (distiller.evaluate, distiller.predict):
        with pytest.raises(ConfigurationError, match="Expected steps= for"):
            run(endless, verbose=0)
    distiller.fit(
        endless, steps_per_epoch=3, validation_data=endless, validation_steps=2, verbose=0
    )
    assert len(distiller.predict(endless, steps=2, verbose=0)) == 14
    with pytest.raises(DataError, match=r"a tf\.data\.Dataset that ends"):
        kdtflite.evaluate(distiller, endless, progress=False)


@pytest.mark.parametrize("ending", [".weights.h5", ".h5", ".ckpt"])
@pytest.mark.parametrize("way", ["distiller", "multi_task"])
def test_a_checkpoint_of_weights_is_the_students(data, models, tmp_path, way, ending):
    x, y, _ = data
    path = str(tmp_path / f"best{ending}")
    keep = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    hints = losses.Hints("student_relu", models.teacher().layers[1].name, adapter="always")
    if way == "distiller":
        teacher = models.teacher()
        hints = losses.Hints("student_relu", teacher.layers[1].name, adapter="always")
        trained = Distiller(models.student(), teacher, losses=[hints])
        again, fresh = Distiller(models.student(seed=3), teacher, losses=[]), models.student(seed=5)
        trained.compile("adam", SPARSE)
    else:
        trained, again = (
            MultiTaskDistiller(two_headed(s), {"a": models.teacher()}) for s in (1, 3)
        )
        fresh = two_headed(5)
        trained.compile("adam", SPARSE)
        y = {"a": y, "b": y}
    trained.fit(x, y, callbacks=[keep], verbose=0)
    fresh.load_weights(path)
    again.load_weights(path)
    for loaded in (fresh, again.student):
        for one, other in zip(trained.student.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    # and the other way round
    fresh.save_weights(tmp_path / f"own{ending}")
    other = models.student(seed=7) if way == "distiller" else two_headed(7)
    distiller = (
        Distiller(other, models.teacher())
        if way == "distiller"
        else MultiTaskDistiller(other, {"a": models.teacher()})
    )
    distiller.load_weights(tmp_path / f"own{ending}")
    for one, two in zip(fresh.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def two_headed(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    shared = L.Dense(5, name="shared")(inputs)
    return keras.Model(inputs, [L.Dense(3, name=name)(shared) for name in "ab"])


@pytest.mark.parametrize("ending", [".weights.h5", ".ckpt"])
def test_a_file_of_weights_keeps_the_optimizer(data, models, tmp_path, ending):
    x, y, _ = data
    one, other = build(models), build(models, seed=4)
    one.fit(x, y, verbose=0)
    one.save_weights(str(tmp_path / f"w{ending}"))
    other.optimizer.build(other.trained_variables)
    other.load_weights(str(tmp_path / f"w{ending}"))
    assert int(other.optimizer.iterations) == int(one.optimizer.iterations) == 1
    for a, b in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_metrics_labels_and_weights_go_by_the_outputs_name(data, models):
    x, y, weight = data
    plain = build(models)
    plain.compile(keras.optimizers.Adam(0.01), SPARSE, ["accuracy"], weighted_metrics=["accuracy"])
    named = Distiller(models.student(), models.teacher())
    named.compile(
        keras.optimizers.Adam(0.01),
        {"student_out": SPARSE},
        {"student_out": ["accuracy"]},
        weighted_metrics={"student_out": ["accuracy"]},
    )
    expected = plain.fit(x, y, sample_weight=weight, shuffle=False, verbose=0).history
    found = named.fit(
        x, {"student_out": y}, sample_weight={"student_out": weight}, shuffle=False, verbose=0
    ).history
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    batches = tf.data.Dataset.from_tensors((x, {"student_out": y}))
    np.testing.assert_allclose(
        named.evaluate(batches, verbose=0), plain.evaluate(x, y, verbose=0), rtol=1e-6
    )
    named.compile("sgd", [SPARSE])
    for options in ({"loss": {"out": SPARSE}}, {"loss": SPARSE, "metrics": {"out": "accuracy"}}):
        with pytest.raises(ConfigurationError, match=r"'out'\. .*Expected one of: student_out"):
            named.compile("sgd", **options)


@pytest.mark.parametrize("way", ["distiller", "semi_supervised", "mutual", "multi_task"])
def test_a_configuration_makes_the_distiller_anew(data, models, way):
    x, y, _ = data
    student, teacher = models.student(), models.teacher()
    if way == "distiller":
        made = Distiller(student, teacher, losses=[losses.SoftTargets(2.0)], hard_label_weight=0.3)
    elif way == "semi_supervised":
        made = SemiSupervisedDistiller(student, teacher, threshold=0.5, name="own")
    elif way == "mutual":
        made = MutualDistiller([student, models.student(name="other")], peer_weight=0.5)
    else:
        made, y = MultiTaskDistiller(two_headed(1), {"a": teacher}), {"a": y, "b": y}
    config = made.get_config()
    again = type(made).from_config(config)
    assert set(config) == set(again.get_config())
    assert all(one is two for one, two in zip(made.students, again.students, strict=True))
    results = []
    for each in (made, again):
        each.compile(keras.optimizers.SGD(0.0), SPARSE)
        results.append(each.train_on_batch(x, y))
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_a_configuration_holds_the_student_that_was_converted():
    inputs = keras3.Input((4,))
    student = keras3.Model(inputs, keras3.layers.Dense(3)(inputs))
    teacher = keras3.models.clone_model(student)
    made = Distiller(student, teacher)
    assert made.get_config()["student"] is made.student
    assert made.get_config()["teacher"] is teacher


def list_losses():
    return sorted(
        (
            kind
            for _, kind in inspect.getmembers(losses, inspect.isclass)
            if issubclass(kind, DistillationLoss) and not inspect.isabstract(kind)
        ),
        key=lambda kind: kind.__name__,
    )


@pytest.mark.parametrize("kind", list_losses(), ids=lambda kind: kind.__name__)
def test_every_loss_is_made_anew_from_its_configuration(kind):
    required = {
        "student_layers": ["a", "b"],
        "teacher_layers": ["c", "d"],
        "classifier": "head",
        "loss": losses.SoftTargets(2.0),
    }
    parameters = inspect.signature(kind).parameters
    wanted = [n for n, p in parameters.items() if p.default is p.empty]
    arguments = {name: required[name] for name in wanted if name in required}
    if set(wanted) - set(arguments):
        pytest.skip(f"its own test: {sorted(set(wanted) - set(arguments))}")
    try:
        loss = kind(**arguments, name="own")
    except ConfigurationError:
        arguments |= {"student_layers": "a", "teacher_layers": "c"} & arguments.keys() or {}
        pytest.skip("takes single layers")
    config = loss.get_config()
    assert set(config) == set(parameters) | {"name"}
    again = kind.from_config(config)
    assert again.get_config() == config
    assert (again.name, again.student_layers) == ("own", loss.student_layers)


def test_a_schedule_among_the_parameters_stays_one():
    loss = losses.SoftTargets(Linear(4.0, 1.0))
    assert losses.SoftTargets.from_config(loss.get_config()).schedules == loss.schedules
    json.dumps(losses.SoftTargets(3.0).get_config())


def test_a_loss_whose_constructor_forgets_the_base_class(data, models):
    x, y, _ = data

    class Nameless(LogitsLoss):
        def __init__(self, scale):
            self.scale = scale

        def __call__(self, student_logits, teacher_logits):
            return self.scale * tf.reduce_sum(tf.abs(student_logits - teacher_logits), axis=-1)

    class Named(Nameless):
        default_name = "gap"

    history = build(models, losses=[Named(2.0)]).fit(x, y, verbose=0).history
    same = build(models, losses=[Nameless(2.0)]).fit(x, y, verbose=0).history
    assert np.isfinite(history["gap_loss"]).all()
    assert same["nameless_loss"] == history["gap_loss"]


def test_xla_and_a_teacher_in_python_are_refused_together(models):
    function = CallableTeacher(lambda x: np.zeros((len(x), 3), np.float32), output_shape=3)
    for teacher in (function, [function, models.teacher()]):
        distiller = Distiller(models.student(), teacher)
        with pytest.raises(ConfigurationError, match=r"XLA cannot compile.*cache_teacher"):
            distiller.compile("adam", SPARSE, jit_compile=True)
        distiller.compile("adam", SPARSE)
    build(models).compile("adam", SPARSE, jit_compile=True)


def test_a_student_with_several_outputs_is_told_where_to_go(models):
    with pytest.raises(UnsupportedModelError, match=r"with 2: a, b\. .*MultiTaskDistiller"):
        Distiller(two_headed(1), models.teacher())
    with pytest.raises(UnsupportedModelError, match=r"with 2: a, b\. Build a model with one"):
        Distiller(models.student(), two_headed(1))


def test_another_resolution_is_no_other_number_of_classes():
    def fully_convolutional(*strides):
        inputs = keras.Input((8, 8, 3))
        x = inputs
        for stride in strides:
            x = L.Conv2D(3, 3, strides=stride, padding="same")(x)
        return keras.Model(inputs, x)

    with pytest.raises(ShapeMismatchError, match=r"maps of different sizes.*\(None, 4, 4, 3\)"):
        Distiller(fully_convolutional(1), fully_convolutional(2))
    flat = keras.Model(i := keras.Input((8, 8, 3)), L.Dense(3)(L.Flatten()(i)))
    with pytest.raises(ShapeMismatchError, match=r"the same number of axes.*\(None, 8, 8, 3\)"):
        Distiller(flat, fully_convolutional(1))
