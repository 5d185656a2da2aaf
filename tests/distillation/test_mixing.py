"""MixUp and CutMix: what is mixed, in which shares, and that both models see the same."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import stats
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets, TeacherBoundedRegression
from kdtflite.distillation.mixing import CutMix, Mixed, Mixing, MixUp
from kdtflite.distillation.step import CachedBatch
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.models.keras_internals import get_mask, set_mask

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def number_samples(count, *shape):
    """Samples that hold their own number everywhere."""
    x = np.zeros((count, *shape), np.float32)
    return x + np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape))


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_is_the_weighted_mean_of_a_sample_and_its_partner(per_sample):
    keras.utils.set_random_seed(3)
    x = np.random.default_rng(0).normal(0, 1, (40, 5, 2)).astype(np.float32)
    mixed = MixUp(1.0, per_sample=per_sample)(x)
    partner, share = mixed.partner.numpy(), mixed.share.numpy()
    assert sorted(partner) == list(range(40))
    assert share.shape == (40,)
    assert len(np.unique(share)) == (40 if per_sample else 1)
    for i in range(40):
        expected = np.float64(share[i]) * x[i] + (1 - np.float64(share[i])) * x[partner[i]]
        np.testing.assert_allclose(mixed.inputs[i], expected, rtol=1e-5, atol=1e-6)


def test_the_share_of_a_hand_made_mix():
    # Losses 1 and 3 in shares 3/4 and 1/4: 1.5; 2 and 4 in halves: 3.
    mixed = Mixed(None, tf.constant([1, 0]), tf.constant([0.75, 0.5]))
    np.testing.assert_allclose(
        mixed.mix(tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])), [1.5, 3]
    )
    positions = mixed.mix(tf.constant([[1.0, 2.0]] * 2), tf.constant([[3.0, 6.0]] * 2))
    np.testing.assert_allclose(positions, [[1.5, 3.0], [2.0, 4.0]])
    assert mixed.select_partners(None) is None
    np.testing.assert_array_equal(mixed.select_partners({"a": tf.constant([7, 8])})["a"], [8, 7])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed_and_folded_to_the_greater_half(alpha):
    keras.utils.set_random_seed(0)
    share = MixUp(alpha, per_sample=True)(np.zeros((4000, 1), np.float32)).share.numpy()
    assert share.min() >= 0.5
    assert share.max() <= 1.0

    for value in np.linspace(0.5, 0.999, 20):
        # P(max(λ, 1 - λ) <= v) = F(v) - F(1 - v); four standard errors of 4000 draws.
        folded = stats.beta.cdf(value, alpha, alpha) - stats.beta.cdf(1 - value, alpha, alpha)
        assert abs((share <= value).mean() - folded) < 4 * np.sqrt(0.25 / 4000)


def test_an_alpha_whose_gammas_would_underflow_mixes_next_to_nothing():
    mixed = MixUp(1e-6, per_sample=True)(number_samples(500, 3))
    np.testing.assert_array_equal(mixed.share, np.ones(500))
    np.testing.assert_array_equal(mixed.inputs, number_samples(500, 3))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 1)])
def test_cutmix_cuts_one_box_and_states_its_exact_area(per_sample, size):
    keras.utils.set_random_seed(1)
    x = number_samples(60, *size, 2)
    boxes = set()
    for _ in range(5):
        mixed = CutMix(1.0, per_sample=per_sample)(x)
        images, partner, share = mixed.inputs.numpy(), mixed.partner.numpy(), mixed.share.numpy()
        for i in np.flatnonzero(partner != np.arange(60)):
            cut = images[i] == partner[i]
            np.testing.assert_array_equal(cut | (images[i] == i), True)
            np.testing.assert_array_equal(cut[..., 0], cut[..., 1])
            np.testing.assert_allclose(share[i], 1 - cut.mean(), rtol=1e-6)
            # A rectangle, or all but one: as many pixels as its height times its width.
            for box in (cut[..., 0], ~cut[..., 0]):
                rows, columns = np.nonzero(box)
                if len(rows) and len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1):
                    boxes.add((rows.min(), columns.min(), np.ptp(rows)))
                    break
            else:
                pytest.fail(f"no rectangle: {cut[..., 0]}")
        assert share.min() >= 0.5
    if size != (1, 1):
        assert len(boxes) > 3


def test_cutmix_boxes_have_the_papers_sides():
    # λ = 0.75: sides of half the image's, 8 of 16 and 6 of 12, where they do not stick out.
    class Fixed(CutMix):
        def _draw(self, count):
            return tf.fill([count], 0.75)

    keras.utils.set_random_seed(2)
    areas = set()
    for _ in range(40):
        mixed = Fixed()(number_samples(5, 16, 12, 1))
        other = int(np.flatnonzero(mixed.partner.numpy() != np.arange(5))[0])
        rows, columns = np.nonzero(mixed.inputs.numpy()[other, ..., 0] != other)
        areas.add((np.ptp(rows) + 1, np.ptp(columns) + 1))
    assert max(areas) == (8, 6)
    assert len(areas) > 5  # centers are anywhere


def test_cutmix_shares_are_those_of_the_papers_boxes_but_for_whose_row_it_is():
    # The paper's recipe in NumPy: λ even from 0 to 1, the box cut off at the image's edges.
    rng, size, draws = np.random.default_rng(0), 16, 4000
    side = (size * np.sqrt(1 - rng.random(draws))).astype(int) // 2
    ends = [
        [np.clip(center + sign * side, 0, size) for sign in (-1, 1)]
        for center in rng.integers(0, size, (2, draws))
    ]
    inside = np.prod([stop - start for start, stop in ends], axis=0) / size**2
    keras.utils.set_random_seed(7)
    share = CutMix(1.0, per_sample=True)(np.zeros((draws, size, size, 1), np.float32)).share
    # Boxes of more than half of the image are drawn, too, and leave shares that are near a half.
    found = stats.ks_2samp(np.maximum(inside, 1 - inside), share.numpy())
    assert found.pvalue > 0.01


def test_several_inputs_are_mixed_alike():
    keras.utils.set_random_seed(5)
    x = {"a": number_samples(9, 4), "b": number_samples(9, 2, 3)}
    mixed = MixUp(1.0)(x)
    np.testing.assert_allclose(mixed.inputs["a"][:, 0], mixed.inputs["b"][:, 0, 0], rtol=1e-6)
    pair = CutMix(1.0)((number_samples(9, 6, 6, 1), number_samples(9, 6, 6, 3)))
    np.testing.assert_array_equal(pair.inputs[0][..., 0], pair.inputs[1][..., 2])


def test_the_seed_repeats_a_mix_and_every_batch_is_mixed_anew():
    x = number_samples(20, 4)

    @tf.function
    def mix(values):
        mixed = MixUp(1.0)(values)
        return mixed.inputs, mixed.partner

    def drawn():
        keras.utils.set_random_seed(11)
        return mix(x), mix(x)

    first, second = drawn()
    again = MixUp(1.0)
    assert not np.array_equal(first[1], second[1])
    keras.utils.set_random_seed(4)
    one = again(x).inputs
    keras.utils.set_random_seed(4)
    np.testing.assert_array_equal(again(x).inputs, one)


def test_shapes_stay_known_where_the_batch_is_open():
    for mixing in (MixUp(), CutMix()):
        traced = tf.function(lambda x, m=mixing: m(x).inputs).get_concrete_function(
            tf.TensorSpec((None, 8, 6, 3))
        )
        assert traced.structured_outputs.shape.as_list() == [None, 8, 6, 3]


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(DataError, match=r"floating dtype\. Received: uint8"):
        CutMix()(np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(DataError, match=r"floating dtype. Received: int32, shape \(2, 4\)"):
        MixUp()({"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 4), np.int32)})
    with pytest.raises(DataError, match=r"CutMix needs images.*Received: \(2, 4\)"):
        CutMix()(np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match="all of the same size"):
        CutMix()([np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 5, 4, 1), np.float32)])
    with pytest.raises(ConfigurationError, match="cannot be used with cached teacher outputs"):
        MixUp()(CachedBatch(np.zeros((2, 4), np.float32), np.zeros((2, 3)), {}))
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="positive, finite alpha"):
            MixUp(alpha)


def test_fit_refuses_tokens_and_cached_outputs_in_one_sentence(data, models):
    x, y, _ = data
    inputs = keras.Input((4,), dtype="int32")
    flat = keras.layers.Flatten()(keras.layers.Embedding(9, 2)(inputs))
    reader = keras.Model(inputs, keras.layers.Dense(3)(flat))
    distiller = Distiller(reader, keras.models.clone_model(reader), mixing=MixUp())
    distiller.compile("sgd", CrossEntropy(from_logits=True))
    with pytest.raises(DataError, match=r"^MixUp mixes samples of a floating dtype\."):
        distiller.fit(np.ones((21, 4), np.int32), y, verbose=0)
    distiller = Distiller(models.student(), models.teacher(), mixing=CutMix())
    distiller.compile("sgd", CrossEntropy(from_logits=True))
    batches = tf.data.Dataset.from_tensors((CachedBatch(x, np.zeros((21, 3), np.float32), {}), y))
    with pytest.raises(ConfigurationError, match=r"^CutMix cannot be used with cached teacher"):
        distiller.fit(batches, verbose=0)


class Fixed(Mixing):
    """Mixes with the next sample, in shares that the test knows."""

    def __init__(self):
        super().__init__(1.0)
        self.shares = tf.constant([0.5, 0.75, 0.9, 1.0] * 5 + [0.6])

    def __call__(self, x):
        share = self.shares[:, tf.newaxis]
        partner = (tf.range(21) + 1) % 21
        inputs = share * x + (1 - share) * tf.gather(x, partner)
        return Mixed(inputs, partner, self.shares)

    def _mix(self, x, partner, share):
        raise NotImplementedError


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixed_step_is_both_labels_in_their_shares_and_the_teachers_view_of_the_mix(
    data, models, weighted
):
    x, y, sample_weight = data
    student, teacher = models.student(), models.teacher()
    distiller = Distiller(
        student, teacher, losses=[SoftTargets(2.0)], hard_label_weight=0.3, mixing=Fixed()
    )
    distiller.compile(keras.optimizers.SGD(0.1), CrossEntropy(from_logits=True))
    share = np.float64(Fixed().shares.numpy())
    mixed = share[:, None] * x + (1 - share[:, None]) * np.roll(x, -1, axis=0)
    z_s, z_t = (np.float64(m(mixed.astype(np.float32))) for m in (student, teacher))
    logs = log_softmax(z_s, axis=-1)
    rows = np.arange(21)
    hard = -share * logs[rows, y] - (1 - share) * logs[rows, np.roll(y, -1)]
    p = softmax(z_t / 2, axis=-1)
    soft = 4 * (p * (log_softmax(z_t / 2, axis=-1) - log_softmax(z_s / 2, axis=-1))).sum(-1)
    weights = np.float64(sample_weight) if weighted else np.ones(21)
    got = distiller.train_on_batch(x, y, sample_weight if weighted else None, return_dict=True)
    np.testing.assert_allclose(got["hard_labels_loss"], (weights * hard).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["soft_targets_loss"], (weights * soft).mean(), rtol=1e-5)


@pytest.mark.parametrize("mixing", [MixUp(1.0), MixUp(1.0, per_sample=True)])
def test_teacher_and_student_are_given_the_very_same_tensor(data, models, mixing):
    x, y, _ = data
    seen = {"student": [], "teacher": []}

    def note(who):
        return lambda inputs: seen[who].append(inputs) or inputs

    distiller = Distiller(
        models.student(),
        models.teacher(),
        mixing=mixing,
        student_preprocessing=note("student"),
        teacher_preprocessing=note("teacher"),
    )
    distiller.compile("sgd", CrossEntropy(from_logits=True), run_eagerly=True)
    for values in seen.values():
        values.clear()
    distiller.train_on_batch(x, y)
    assert len(seen["student"]) == len(seen["teacher"]) == 1
    assert seen["student"][0] is seen["teacher"][0]
    assert np.abs(seen["student"][0].numpy() - x).max() > 0.05


def test_images_train_with_cutmix_and_evaluation_mixes_nothing():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (64, 6, 6, 1)).astype(np.float32), rng.integers(0, 2, 64)
    x[y == 1] += 1.0

    def net(width):
        layers = [keras.Input((6, 6, 1)), keras.layers.Conv2D(width, 3), keras.layers.ReLU()]
        return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(2)])

    student, teacher = net(2), net(4)
    distiller = Distiller(student, teacher, losses=[], mixing=CutMix())
    optimizer = keras.optimizers.Adam(0.02)
    distiller.compile(optimizer, CrossEntropy(from_logits=True), ["accuracy"])
    history = distiller.fit(x, y, batch_size=8, epochs=20, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    loss, accuracy = distiller.evaluate(x, y, verbose=0)
    z = np.float64(student.predict(x, verbose=0))
    np.testing.assert_allclose(loss, -log_softmax(z, -1)[np.arange(64), y].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (z.argmax(-1) == y).mean(), rtol=1e-6)


class Painted(CutMix):
    """CutMix with the next image and a known box: rows 2 to 5, columns 0 to 3."""

    def _draw(self, count):
        return tf.fill([count], 0.5)

    def _mix(self, x, partner, share):
        partner = (tf.range(tf.shape(x)[0]) + 1) % tf.shape(x)[0]
        box = np.zeros((1, 8, 8), bool)
        box[0, 2:6, :4] = True
        inputs = tf.where(box[..., None], tf.gather(x, partner), x)
        return Mixed(inputs, partner, tf.constant([0.75]), tf.constant(box))


def labeler(stride, size=8):
    """Labels each pixel by its own value, 0 to 2, surely; a map of every `stride`-th pixel."""
    inputs = keras.Input((size, size, 1))
    x = keras.layers.Conv2D(3, 1, strides=stride, name="one_by_one")(inputs)
    model = keras.Model(inputs, x)
    # -50 · (value - class)², up to what is the same for all classes
    model.set_weights([np.array([[[[0.0, 100.0, 200.0]]]]), np.array([0.0, -50.0, -200.0])])
    return model


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mixing", [CutMix(1.0), CutMix(1.0, per_sample=True)])
def test_a_perfect_labeler_of_pixels_stays_perfect_under_cutmix(mixing, stride):
    keras.utils.set_random_seed(1)
    coarse = np.random.default_rng(1).integers(0, 3, (12, 8, 8))
    x = np.float32(coarse)[..., None]
    # In the map of a strided convolution, pixel i is pixel 2 i of the image; the middle of the two
    # that it stands for is 2 i + 1: both have the same value here.
    if stride == 2:
        x = np.repeat(np.repeat(x[:, ::2, ::2], 2, axis=1), 2, axis=2)
    y = x[:, ::stride, ::stride, 0].astype(int)

    class Even(CutMix):
        """Boxes that do not cut through a pixel of the map."""

        def _mix(self, x, partner, share):
            mixed = super()._mix(x, partner, share)
            box = tf.repeat(tf.repeat(mixed.box[:, ::2, ::2], 2, axis=1), 2, axis=2)
            inputs = tf.where(box[..., None], tf.gather(x, partner), x)
            return Mixed(inputs, partner, mixed.share, box)

    used = mixing if stride == 1 else Even(1.0, per_sample=mixing.per_sample)
    distiller = Distiller(labeler(stride), labeler(stride), mixing=used)
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True), ["accuracy"])
    got = distiller.fit(x, y, 4, epochs=2, verbose=0).history
    assert max(got["hard_labels_loss"]) < 1e-6
    assert got["accuracy"] == [1.0, 1.0]


def test_void_pixels_and_weights_of_pixels_are_cut_with_their_image():
    x = np.zeros((2, 8, 8, 1), np.float32)
    y = np.stack([np.zeros((8, 8), int), np.full((8, 8), 255)])
    weight = np.stack([np.full((8, 8), 1.0), np.full((8, 8), 3.0)]).astype(np.float32)
    mixed = Painted()(x)
    labels, weights = mixed.cut(y).numpy(), mixed.cut(weight).numpy()
    assert [(labels[i] == 255).sum() for i in (0, 1)] == [16, 48]
    assert [weights[i].sum() for i in (0, 1)] == [48 + 16 * 3.0, 48 * 3.0 + 16]
    assert (labels[0, 2:6, :4] == 255).all()
    assert mixed.cut(None) is None
    np.testing.assert_array_equal(mixed.cut(np.array([4.0, 5.0])), [4.0, 5.0])
    # half as large: rows 1 and 2, columns 0 and 1 of four
    assert np.argwhere(mixed.cut(y[:, ::2, ::2])[0] == 255).tolist() == [
        [1, 0], [1, 1], [2, 0], [2, 1]
    ]  # fmt: skip


@pytest.mark.parametrize("column", [True, False])
def test_a_regression_that_reads_labels_is_given_the_mixed_ones(column):
    # Student and teacher are the truth, y = x · w, so that of any mix they are right as well.
    weights = np.linspace(-1, 1, 4).astype(np.float32)[:, None]

    def linear():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.set_weights([weights, np.zeros(1, np.float32)])
        return model

    x = np.random.default_rng(0).normal(0, 1, (40, 4)).astype(np.float32)
    y = x @ weights if column else (x @ weights)[:, 0]
    loss = TeacherBoundedRegression(margin=0.1)
    for mixing in (MixUp(1.0), MixUp(1.0, per_sample=True)):
        distiller = Distiller(linear(), linear(), task="regression", losses=[loss], mixing=mixing)
        distiller.compile(keras.optimizers.SGD(0.0), "mse")
        got = distiller.fit(x, y, verbose=0).history
        assert got["teacher_bounded_regression_loss"][0] < 1e-10
        assert got["hard_labels_loss"][0] > 0.1  # both labels, each with its share


@pytest.mark.parametrize("ignored", ["own", "partner", "both"])
def test_what_counts_in_one_of_both_labels_counts_in_the_mix(ignored):
    def masked(values, mask):
        values = tf.constant(values)
        set_mask(values, tf.constant(mask))
        return values

    own = masked([2.0, 0.0], [True, ignored == "partner"])
    partners = masked([4.0, 8.0], [ignored != "partner", ignored == "own"])
    mixed = Mixed(None, tf.constant([1, 0]), tf.constant([0.75, 0.75])).mix(own, partners)
    np.testing.assert_allclose(mixed, [2.5, 2.0])
    assert get_mask(mixed).numpy().tolist() == [True, ignored != "both"]
