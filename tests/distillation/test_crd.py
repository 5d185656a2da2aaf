"""CRD is the paper's objective over the bank, and the bank is the last samples seen."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numeric_gradients import gradient, numeric_gradient

from kdtflite.distillation.losses.relations.crd import CRD
from kdtflite.distillation.losses.relations.embedding_bank import EmbeddingBank
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError

TAU = 0.07


class Reference:
    """The objective by loops, in float64, with lists for the banks."""

    def __init__(self, loss, tau=TAU, size=16384, dataset_size=None):
        weights = [np.float64(v.numpy()) for v in loss.trainable_variables]
        self.heads = (weights[:2], weights[2:])
        self.tau, self.size = tau, size
        self.banks, self.classes = ([], []), []
        self.c = None if dataset_size is None else (1 / dataset_size, 1 / dataset_size)

    def embed(self, side, features):
        kernel, bias = self.heads[side]
        f = np.float64(features).reshape(len(features), -1) @ kernel + bias
        return f / np.linalg.norm(f, axis=1, keepdims=True)

    def __call__(self, student, teacher, labels):
        g = [self.embed(side, f) for side, f in enumerate((student, teacher))]
        n = len(student)
        ids = [object() for _ in range(n)]
        for side in (0, 1):
            self.banks[side].extend(zip(ids, g[side], strict=True))
            del self.banks[side][: -self.size]
        self.classes.extend(labels)
        del self.classes[: -self.size]
        return self.shares(g, ids, labels)

    def negatives(self, side, i, ids, labels):
        return [
            embedding
            for (owner, embedding), c in zip(self.banks[side], self.classes, strict=True)
            if owner is not ids[i] and (labels[i] is None or c != labels[i])
        ]

    def shares(self, g, ids, labels):
        n, shares = len(ids), np.zeros(len(ids))
        ways = [(g[0], g[1], 1), (g[1], g[0], 0)]
        if self.c is None:
            pairs = [
                [
                    math.exp(a[i] @ x / self.tau)
                    for i in range(n)
                    for x in self.negatives(side, i, ids, labels)
                ]
                for a, _, side in ways
            ]
            self.c = tuple(np.mean(p) for p in pairs) if pairs[0] else None
        for (anchors, others, side), c in zip(ways, self.c or (1, 1), strict=True):
            for i in range(n):
                negatives = self.negatives(side, i, ids, labels)
                if not negatives:
                    continue
                noise = len(negatives) * c
                e = math.exp(anchors[i] @ others[i] / self.tau)
                shares[i] -= math.log(e / (e + noise))
                for x in negatives:
                    e = math.exp(anchors[i] @ x / self.tau)
                    shares[i] -= math.log(1 - e / (e + noise))
        return shares


def batch(seed, n=5, student=(4,), teacher=(2, 3), classes=3):
    rng = np.random.default_rng(seed)
    s, t = (rng.normal(0, 1, (n, *shape)).astype(np.float32) for shape in (student, teacher))
    return s, t, rng.integers(0, classes, n)


def made(**kwargs):
    """A loss that is built, with reproducible projections of both kinds of weights."""
    keras.utils.set_random_seed(0)
    loss = CRD("s", "t", embedding=3, **kwargs)
    loss.build({"s": (None, 4)}, {"t": (None, 2, 3)})
    rng = np.random.default_rng(0)
    for variable in loss.trainable_variables:
        variable.assign(rng.normal(0, 1, variable.shape))
    return loss


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("dataset_size", [None, 1000])
@pytest.mark.parametrize("size", [64, 7, 3])
@pytest.mark.parametrize("tau", [TAU, 1.0])
def test_four_batches_through_banks_that_wrap_around_or_are_smaller_than_one(
    with_labels, dataset_size, size, tau
):
    loss = made(bank_size=size, dataset_size=dataset_size, temperature=tau)
    reference = Reference(loss, tau, size, dataset_size)
    for seed, n in enumerate((5, 4, 5, 1)):
        s, t, y = batch(seed, n)
        value = loss([s], [t], y if with_labels else None)
        assert value.shape == (n,)
        assert value.dtype == tf.float32
        expected = reference(s, t, list(y) if with_labels else [None] * n)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert (expected > 0).any()


def test_a_pair_worked_by_hand():
    # Both heads the identity on unit vectors, tau = 1, M = 4. Each sample has one negative, at a
    # right angle: N/M = 1/4, -ln(e / (e + 1/4)) - ln(1 - 1 / (1 + 1/4)), both ways.
    loss = CRD("s", "t", embedding=2, temperature=1.0, dataset_size=4)
    loss.build({"s": (None, 2)}, {"t": (None, 2)})
    for kernel, bias in (loss.trainable_variables[:2], loss.trainable_variables[2:]):
        kernel.assign(np.eye(2))
        bias.assign(np.zeros(2))
    value = math.log(1 + 0.25 / math.e) + math.log(5)
    given = loss([np.eye(2)], [3 * np.eye(2)], [0, 1])
    np.testing.assert_allclose(given, [2 * value, 2 * value], rtol=1e-6)


def test_the_gradients_are_what_finite_differences_give():
    # c is set by the first batch; from then on it and what is in the bank are constants, the
    # batch's own entries as well, and each sample is pulled and pushed as an anchor alone.
    first, (s, t, y) = batch(0), batch(1, classes=2)
    loss, weights = made(), np.array([0.5, 1.0, 2.0, 0.0, 1.5], np.float32)
    reference = Reference(loss)
    loss([first[0]], [first[1]], first[2])
    reference(*first)
    ids = [object() for _ in range(5)]
    for side, f in enumerate((s, t)):
        reference.banks[side].extend(zip(ids, reference.embed(side, f), strict=True))
    reference.classes.extend(y)

    def total(student, teacher):
        g = [reference.embed(0, student), reference.embed(1, teacher)]
        return weights @ reference.shares(g, ids, list(y))

    expected = numeric_gradient(lambda moved: total(moved, t), np.float64(s))
    with tf.GradientTape() as tape:
        tape.watch(student := tf.constant(s))
        value = tf.reduce_sum(weights * loss([student], [t], y))
    slopes = tape.gradient(value, [student, *loss.trainable_variables])
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 1

    for index, head in enumerate(reference.heads):
        kernel = head[0].copy()

        def moved(k, head=head):
            head[0] = k
            return total(s, t)

        expected = numeric_gradient(moved, kernel)
        head[0] = kernel
        np.testing.assert_allclose(
            slopes[1 + 2 * index], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )


def test_one_class_in_the_bank_gives_no_loss_until_there_is_another():
    loss = made()
    reference = Reference(loss)
    for seed, label in ((0, 0), (1, 0), (2, 1)):
        s, t, _ = batch(seed)
        y = np.full(5, label)
        value = loss([s], [t], y)
        np.testing.assert_allclose(value, reference(s, t, list(y)), rtol=1e-5)
        assert (value.numpy() > 0).all() == (label == 1)
        slope = gradient(lambda a, b, y=y: loss(a, b, y), s, t, np.ones(5, np.float32))
        reference(s, t, list(y))
        assert np.isfinite(slope).all()
        assert slope.any() == (label == 1)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    loss = made()
    s, t, y = batch(0, n)
    value = loss([s], [t], y)
    np.testing.assert_array_equal(value, np.zeros(n))
    # The next batch sets c, and finds what is in the bank.
    reference = Reference(loss)
    if n:
        reference(s, t, list(y))
    s, t, y = batch(1)
    np.testing.assert_allclose(loss([s], [t], y), reference(s, t, list(y)), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_features_of_no_or_extreme_size(scale):
    loss = made()
    loss.trainable_variables[1].assign(np.zeros(3))  # else the bias alone gives a direction
    s, t, y = batch(3)
    s *= np.float32(scale)
    value = loss([s], [t], y)
    assert np.isfinite(value).all()
    slope = gradient(lambda a, b: loss(a, b, y), s, t, np.ones(5, np.float32))
    assert np.isfinite(slope).all()
    if scale != 0:
        np.testing.assert_allclose(value, made_without_bias()(s, t, list(y)), rtol=1e-5)


def made_without_bias():
    reference = Reference(made())
    reference.heads[0][1] = np.zeros(3)
    return reference


def test_labels_of_every_form_are_the_same_classes():
    s, t, y = batch(4)
    values = [
        made()([s], [t], labels).numpy()
        for labels in (y, y[:, None], np.float32(y), np.eye(3, dtype=np.float32)[y])
    ]
    for value in values[1:]:
        np.testing.assert_array_equal(value, values[0])
    assert (values[0] != made()([s], [t]).numpy()).any()


def test_a_step_gives_labels_only_where_a_sample_has_one_class():
    s, t, y = batch(5)
    for shape, labels in (((5, 3), y), ((5, 4, 2), None)):
        student = Observed(tf.zeros(shape), {"s": tf.constant(s)})
        teacher = Observed(tf.zeros(shape), {"t": tf.constant(t)})
        value = made().compute(Step(student, teacher, y))
        np.testing.assert_array_equal(value, made()([s], [t], labels))


def test_the_bank_forgets_the_oldest_and_masks_the_free_places():
    bank = EmbeddingBank(4, 1)
    nan = math.nan

    def add(values, classes):
        column = tf.constant(values, tf.float32, [len(values), 1])
        return bank.add(column, -column, tf.constant(classes, tf.float64, [len(values)]))

    student, teacher, negatives = add([1.0, 2.0], [0, 1])
    np.testing.assert_array_equal(student[:, 0], [0, 0, 1, 2])
    np.testing.assert_array_equal(teacher[:, 0], [0, 0, -1, -2])
    np.testing.assert_array_equal(negatives, [[0, 0, 0, 1], [0, 0, 1, 0]])
    student, _, negatives = add([3.0, 4.0, 5.0], [1, nan, nan])
    np.testing.assert_array_equal(student[:, 0], [2, 3, 4, 5])
    np.testing.assert_array_equal(negatives, [[0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    # A batch larger than the bank: its first sample is no more in it.
    student, _, negatives = add([6.0, 7.0, 8.0, 9.0, 10.0], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(student[:, 0], [7, 8, 9, 10])
    np.testing.assert_array_equal(negatives[0], [0, 1, 1, 1])
    np.testing.assert_array_equal(negatives[2], [1, 0, 0, 0])
    assert add([], [])[2].shape == (0, 4)


def test_variables_hold_all_that_a_resumed_training_needs():
    loss, other = made(bank_size=7), made(bank_size=7)
    assert [v.shape for v in loss.trainable_variables] == [(4, 3), (3,), (6, 3), (3,)]
    for seed in range(3):
        s, t, y = batch(seed)
        loss([s], [t], y)
    for variable, value in zip(other.variables, loss.variables, strict=True):
        variable.assign(value)
    s, t, y = batch(9)
    np.testing.assert_array_equal(other([s], [t], y), loss([s], [t], y))


def test_alone_it_builds_itself_in_a_graph_of_any_batch():
    keras.utils.set_random_seed(0)
    loss = CRD("s", "t", embedding=3, bank_size=7)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 4), tf.float16),
            tf.TensorSpec((None, 2, 3)),
            tf.TensorSpec((None,), tf.int64),
        ]
    )
    def compiled(s, t, y):
        return loss([s], [t], y)

    reference = None
    for seed, n in enumerate((5, 3, 5)):
        s, t, y = batch(seed, n)
        s = s.astype(np.float16)
        value = compiled(s, t, y)
        reference = reference or Reference(loss, size=7)
        np.testing.assert_allclose(value, reference(s, t, list(y)), rtol=1e-5)


def test_replicas_have_banks_of_their_own():
    # A process of its own: logical devices can only be made before TensorFlow starts.
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        import tensorflow as tf
        sys.path.insert(0, FOLDER)
        from test_crd import Reference, batch, made

        cpu = tf.config.list_physical_devices("CPU")[0]
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            loss = made(bank_size=7)
        references = [Reference(loss, size=7) for _ in range(2)]

        @tf.function
        def step(*data):
            return strategy.run(lambda s, t, y: loss([s], [t], y), args=data)

        for seed in (0, 2, 4):
            batches = [batch(seed), batch(seed + 1)]
            data = [
                strategy.experimental_distribute_values_from_function(
                    lambda context, i=i: tf.constant(batches[context.replica_id_in_sync_group][i])
                )
                for i in range(3)
            ]
            values = strategy.experimental_local_results(step(*data))
            for value, reference, (s, t, y) in zip(values, references, batches, strict=True):
                np.testing.assert_allclose(value, reference(s, t, list(y)), rtol=1e-5)
        print("alike")
        """
    ).replace("FOLDER", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("alike\n"), done.stderr[-3000:]


@pytest.mark.parametrize("shape", [(None, None, 4), (None,)])
def test_features_of_open_size_are_refused(shape):
    with pytest.raises(ShapeMismatchError, match=r"student layer 's'.*after global pooling"):
        CRD("s", "t").build({"s": shape}, {"t": (None, 4)})


@pytest.mark.parametrize(
    "wrong", [{"embedding": 0}, {"bank_size": 0}, {"dataset_size": 0}, {"temperature": 0.0}]
)
def test_parameters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="Received"):
        CRD("s", "t", **wrong)


def test_its_configuration_makes_it_again():
    config = CRD("s", "t", embedding=9, temperature=0.1, bank_size=5, dataset_size=7).get_config()
    assert CRD(**config).get_config() == config
    assert (config["embedding"], config["temperature"], config["bank_size"]) == (9, 0.1, 5)
