"""Every loss on logits is its paper's formula, for every logit that a network can give."""

import numpy as np
import pytest
import tensorflow as tf

from kdtflite.distillation.losses.logits.confidence_temperature import ConfidenceTemperature
from kdtflite.distillation.losses.logits.cross_entropy_distillation import CrossEntropyDistillation
from kdtflite.distillation.losses.logits.decoupled_kd import DecoupledKD
from kdtflite.distillation.losses.logits.dist import DIST
from kdtflite.distillation.losses.logits.hard_targets import HardTargets
from kdtflite.distillation.losses.logits.jensen_shannon import JensenShannon
from kdtflite.distillation.losses.logits.logit_standardization import LogitStandardization
from kdtflite.distillation.losses.logits.logits_mse import LogitsMSE
from kdtflite.distillation.losses.logits.multi_level_logits import MultiLevelLogits
from kdtflite.distillation.losses.logits.reverse_kl import ReverseKL
from kdtflite.distillation.losses.logits.smoothed_targets import SmoothedTargets
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Linear
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError

LABELS = np.array([2, 0, 4, 4, 1, 3])


def log_p(logits, t=1.0):
    z = np.asarray(logits, np.longdouble) / t
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def kl(a, b):
    return sum(np.exp(x) * (x - y) for x, y in zip(a, b, strict=True) if np.exp(x) > 0)


def h(p, log_q):
    return -sum(x * y for x, y in zip(p, log_q, strict=True) if x > 0)


def onehot(logits):
    return np.eye(len(logits))[np.argmax(logits)]


def soft(s, t, temp):
    return temp**2 * kl(log_p(t, temp), log_p(s, temp))


def jensen_shannon(s, t, temp, beta):
    q, p = log_p(s, temp), log_p(t, temp)
    m = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
    return temp**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))


def smoothed(s, t, temp, epsilon):
    target = (1 - epsilon) * np.exp(log_p(t, temp)) + epsilon / len(s)
    return temp**2 * kl(np.log(target), log_p(s, temp))


def decoupled(s, t, y, temp, alpha, beta):
    def two(z):
        z = log_p(z, temp)
        rest = np.delete(z, y)
        return np.array([z[y], rest.max() + np.log(np.exp(rest - rest.max()).sum())])

    tckd = kl(two(t), two(s))
    nckd = kl(log_p(np.delete(t, y), temp), log_p(np.delete(s, y), temp))
    return temp**2 * (alpha * tckd + beta * nckd)


def z_score(z, tau):
    z = np.asarray(z, np.longdouble)
    deviation = np.sqrt(((z - z.mean()) ** 2).mean())
    return (z - z.mean()) / deviation / tau


def confident(student, teacher, temp, beta, whose):
    read = teacher if whose == "teacher" else student
    w = [1 / np.exp(log_p(z)).max() for z in read]
    temps = [max(1.0, temp + beta * (np.mean(w) - each)) for each in w]
    return [soft(s, t, each) for s, t, each in zip(student, teacher, temps, strict=True)]


def each(function):
    return lambda student, teacher: [function(s, t) for s, t in zip(student, teacher, strict=True)]


def with_labels(function):
    return lambda student, teacher: [
        function(*rows) for rows in zip(student, teacher, LABELS, strict=False)
    ]


# DIST and MultiLevelLogits, whose formulas are of a whole batch, have files of their own.
CASES = {
    "soft": (SoftTargets(3.0), each(lambda s, t: soft(s, t, 3.0))),
    "reverse": (ReverseKL(2.0), each(lambda s, t: soft(t, s, 2.0))),
    "jensen": (JensenShannon(2.0), each(lambda s, t: jensen_shannon(s, t, 2.0, 0.5))),
    "jensen_uneven": (JensenShannon(beta=0.1), each(lambda s, t: jensen_shannon(s, t, 1.0, 0.1))),
    "hard": (HardTargets(), each(lambda s, t: h(onehot(t), log_p(s)))),
    "hard_smoothed": (
        HardTargets(label_smoothing=0.1),
        each(lambda s, t: h(0.9 * onehot(t) + 0.1 / len(t), log_p(s))),
    ),
    "cross_entropy": (
        CrossEntropyDistillation(2.0, soft_weight=0.3),
        each(
            lambda s, t: (
                0.3 * 4 * h(np.exp(log_p(t, 2.0)), log_p(s, 2.0)) + 0.7 * h(onehot(t), log_p(s))
            )
        ),
    ),
    "mse": (LogitsMSE(center=False), each(lambda s, t: np.mean((s - t) ** 2))),
    "mse_centered": (
        LogitsMSE(),
        each(lambda s, t: np.mean(((s - s.mean()) - (t - t.mean())) ** 2)),
    ),
    "smoothed": (SmoothedTargets(2.0), each(lambda s, t: smoothed(s, t, 2.0, 0.1))),
    "decoupled": (DecoupledKD(), with_labels(lambda s, t, y: decoupled(s, t, y, 4.0, 1.0, 8.0))),
    "standardized": (
        LogitStandardization(SoftTargets(1.0)),
        each(lambda s, t: 4 * kl(log_p(z_score(t, 2.0)), log_p(z_score(s, 2.0)))),
    ),
    "confident": (
        ConfidenceTemperature(),
        lambda s, t: confident(s, t, 4.0, 1.0, "teacher"),
    ),
    "confident_student": (
        ConfidenceTemperature(3.0, beta=2.0, confidence="student"),
        lambda s, t: confident(s, t, 3.0, 2.0, "student"),
    ),
}
# Its temperature depends on the student, and no gradient is meant to flow through it.
NO_DIFFERENCES = {"confident_student"}
ALL = {name: loss for name, (loss, _) in CASES.items()}
ALL |= {"dist": DIST(), "levels": MultiLevelLogits()}
# Cross-entropies are at least the target's entropy, and a smoothed target is not the teacher.
NOT_ZERO = {"hard", "hard_smoothed", "cross_entropy", "smoothed"}


def value(loss, student, teacher):
    if isinstance(loss, DecoupledKD):
        return loss(student, teacher, LABELS[: len(student)] % student.shape[-1])
    return loss(student, teacher)


def gradient(loss, student, teacher):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(value(loss, student, teacher))
    return tape.gradient(total, student).numpy()


def drawn(scale=3.0, offset=0.0, seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).normal(0, scale, (2, 6, 5)) + offset).astype(dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("scale", "offset"), [(0.01, 0.0), (1.0, 0.0), (10.0, 0.0), (3.0, -1e4), (5e3, 0.0)]
)
def test_the_value_is_the_formula(name, scale, offset):
    loss, formula = CASES[name]
    student, teacher = drawn(scale, offset)
    found = value(loss, student, teacher)
    assert found.shape == (6,)
    assert found.dtype == tf.float32
    expected = np.array(formula(np.longdouble(student), np.longdouble(teacher)), float)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_DIFFERENCES))
def test_the_gradient_is_what_finite_differences_give(name):
    loss, formula = CASES[name]
    student, teacher = np.longdouble(drawn(2.0, seed=1))
    step, numeric = np.longdouble(1e-5), np.zeros(student.shape)
    for i in np.ndindex(student.shape):
        moved = student.copy()
        moved[i] += step
        above = sum(formula(moved, teacher))
        moved[i] -= 2 * step
        numeric[i] = (above - sum(formula(moved, teacher))) / (2 * step)
    found = gradient(loss, np.float64(student), np.float64(teacher))
    np.testing.assert_allclose(found, numeric, rtol=1e-5, atol=1e-7)
    assert np.abs(found).max() > 1e-2


HOSTILE = {
    "huge": drawn(1e4),
    "all negative": drawn(3.0, -1e4),
    "constant": np.zeros((2, 6, 5), np.float32),
    "constant student": np.stack([np.full((6, 5), 7.1, np.float32), drawn()[1]]),
    "constant teacher": np.stack([drawn()[0], np.full((6, 5), 0.1, np.float32)]),
    "equal": np.stack([drawn()[0]] * 2),
    "equal and huge": np.stack([drawn(1e4)[0]] * 2),
    "opposite": np.stack([drawn(1e4)[0], -drawn(1e4)[0]]),
    "one sample": drawn()[:, :1],
    "two classes": drawn()[..., :2],
    "the same rows": np.repeat(drawn()[:, :1], 6, axis=1),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", HOSTILE)
def test_value_and_gradient_are_finite(name, kind):
    loss, (student, teacher) = ALL[name], HOSTILE[kind]
    found = value(loss, student, teacher).numpy()
    assert np.isfinite(found).all()
    assert (found >= -1e-12).all()
    assert np.isfinite(gradient(loss, student, teacher)).all()


@pytest.mark.parametrize("name", sorted(set(ALL) - NOT_ZERO))
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    student, teacher = HOSTILE["equal"]
    np.testing.assert_allclose(value(ALL[name], student, teacher), 0, atol=1e-14)
    np.testing.assert_allclose(gradient(ALL[name], student, teacher), 0, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"mse", "mse_centered", "reverse", "dist"}))
def test_a_class_that_the_teacher_rules_out(name):
    # As a logit so low that its probability is 0 in any float.
    student, teacher = drawn(seed=2)
    low, out = teacher.copy(), teacher.copy()
    low[:, 3], out[:, 3] = -1e6, -np.inf
    if name == "standardized":
        # Left out of the teacher's mean and deviation.
        kept = [0, 1, 2, 4]
        rows = zip(student, teacher[:, kept], strict=True)
        terms = [kl(log_p(z_score(t, 2)), log_p(z_score(s, 2))[kept]) for s, t in rows]
        expected = 4 * np.array(terms, float)
    else:
        expected = value(ALL[name], student, low)
    np.testing.assert_allclose(value(ALL[name], student, out), expected, rtol=1e-5)
    assert np.isfinite(gradient(ALL[name], student, out)).all()


def test_reverse_kl_is_infinite_where_the_student_takes_what_the_teacher_rules_out():
    assert ReverseKL()([[0.0, 0.0]], [[0.0, -np.inf]]).numpy() == np.inf


@pytest.mark.parametrize("name", ["soft", "reverse", "jensen", "hard", "cross_entropy"])
def test_a_class_that_both_rule_out_is_as_if_it_were_not_there(name):
    student, teacher = drawn(seed=2)
    without = value(ALL[name], student, teacher), gradient(ALL[name], student, teacher)
    student, teacher = (np.insert(z, 5, -np.inf, axis=-1) for z in (student, teacher))
    np.testing.assert_allclose(value(ALL[name], student, teacher), without[0], rtol=1e-6)
    found = gradient(ALL[name], student, teacher)
    np.testing.assert_allclose(found[:, :5], without[1], rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found[:, 5], np.zeros(6))


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_gives_no_values(name):
    empty = np.zeros((0, 5), np.float32)
    assert value(ALL[name], empty, empty).shape == (0,)
    assert gradient(ALL[name], empty, empty).shape == (0, 5)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_are_taken_at_their_own_value(name):
    student, teacher = drawn(dtype=np.float16)
    found = value(ALL[name], student, teacher)
    assert found.dtype == tf.float32
    wide = value(ALL[name], np.float64(student), np.float64(teacher))
    np.testing.assert_allclose(found, wide, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_each_position_of_a_sequence_is_a_sample(name):
    student, teacher = drawn(seed=3)
    loss = ALL[name]
    flat = value(loss, student, teacher).numpy()
    if isinstance(loss, DecoupledKD):
        whole = loss(student.reshape(2, 3, 5), teacher.reshape(2, 3, 5), LABELS.reshape(2, 3))
    else:
        whole = loss(student.reshape(2, 3, 5), teacher.reshape(2, 3, 5))
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(whole, flat.reshape(2, 3), rtol=1e-6)


@pytest.mark.parametrize("name", ["dist", "levels", "confident"])
def test_masked_positions_change_no_other(name):
    student, teacher = drawn(seed=4)
    mask = np.array([[True, True, False], [True, False, False]])
    steps = [
        Step(
            Observed(tf.constant(s.reshape(2, 3, 5)), mask=tf.constant(mask)),
            Observed(tf.constant(t.reshape(2, 3, 5))),
        )
        for s, t in ((student, teacher), (student[::-1], teacher[::-1]))
    ]
    counted = ALL[name].compute(steps[0]).numpy()[mask]
    alone = value(ALL[name], student[mask.ravel()], teacher[mask.ravel()])
    np.testing.assert_allclose(counted, alone, rtol=1e-6)
    assert np.abs(counted - value(ALL[name], student, teacher).numpy()[mask.ravel()]).max() > 1e-4


@pytest.mark.parametrize("name", ALL)
def test_it_runs_in_a_graph_of_any_batch_size(name):
    loss, rows = ALL[name], tf.TensorSpec((None, 5), tf.float32)
    if isinstance(loss, DecoupledKD):
        compiled = tf.function(
            loss.__call__, input_signature=[rows, rows, tf.TensorSpec((None,), tf.int64)]
        )
    else:
        compiled = tf.function(loss.__call__, input_signature=[rows, rows])
    student, teacher = drawn(seed=5)
    for size in (6, 1, 0):
        rest = (LABELS[:size],) if isinstance(loss, DecoupledKD) else ()
        found = compiled(student[:size], teacher[:size], *rest)
        expected = value(loss, student[:size], teacher[:size])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_its_configuration_makes_it_again(name):
    config = ALL[name].get_config()
    again = type(ALL[name])(**config)
    assert again.get_config() == config
    student, teacher = drawn(seed=6)
    np.testing.assert_array_equal(
        value(again, student, teacher), value(ALL[name], student, teacher)
    )


@pytest.mark.parametrize(
    "kind",
    [
        SoftTargets,
        ReverseKL,
        JensenShannon,
        CrossEntropyDistillation,
        SmoothedTargets,
        DecoupledKD,
        DIST,
        ConfidenceTemperature,
    ],
)
def test_a_scheduled_temperature_is_read_anew(kind):
    student, teacher = drawn(seed=7)
    schedule = Linear(6.0, 2.0)
    loss = kind(schedule)
    assert loss.schedules == [schedule]
    for epoch, temperature in enumerate((6.0, 4.0, 2.0)):
        schedule.begin(epoch, 3)
        np.testing.assert_allclose(
            value(loss, student, teacher), value(kind(temperature), student, teacher), rtol=1e-5
        )
    with pytest.raises(ConfigurationError, match="positive, finite temperature"):
        kind(0.0)
