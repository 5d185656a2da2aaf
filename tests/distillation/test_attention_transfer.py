"""AttentionTransfer is equation 2 of the paper, and is flat where there is nothing to see."""

import numpy as np
import pytest
from feature_references import assert_gradient, gradient, maps, pool

from kdtflite.distillation.losses.features.attention_transfer import AttentionTransfer
from kdtflite.errors import ConfigurationError, ShapeMismatchError


def reference(student, teacher, p=2.0):
    def looks(sample):
        q = (np.abs(sample) ** p).sum(axis=-1).ravel()
        return q / np.sqrt((q**2).sum()) if q.any() else q

    pairs = zip(np.float64(student), np.float64(teacher), strict=True)
    return np.array([np.sqrt(((looks(s) - looks(t)) ** 2).sum()) for s, t in pairs])


def test_the_value_worked_by_hand():
    # Q is (9, 16) / sqrt(337) and (0, 1).
    student, teacher = [[[3.0], [-4.0]]], [[[0.0, 0.0], [5.0, 5.0]]]
    expected = np.hypot(9 / np.sqrt(337), 16 / np.sqrt(337) - 1)
    np.testing.assert_allclose(AttentionTransfer("a", "b")([student], [teacher]), [expected], 1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("narrow", "wide"), [(1, 5), (6, 6)])
def test_random_maps_of_any_size_and_width(p, scale, narrow, wide):
    student, teacher = maps(0, 4, 3, 5, narrow, scale=scale), maps(1, 4, 3, 5, wide, scale=scale)
    loss = AttentionTransfer("a", "b", p=p)([student], [teacher])
    np.testing.assert_allclose(loss, reference(student, teacher, p), rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_a_student_that_has_nearly_become_its_teacher(distance):
    teacher = maps(0, 4, 3, 5, 6)
    student = teacher + maps(1, 4, 3, 5, 6, scale=distance)
    expected = reference(student, teacher)
    assert (expected > 0).all()
    np.testing.assert_allclose(AttentionTransfer("a", "b")([student], [teacher]), expected, 1e-5)


def test_maps_of_other_sizes_and_sequences():
    student, teacher = maps(0, 2, 8, 8, 3), maps(1, 2, 3, 4, 5)
    loss = AttentionTransfer("a", "b")
    expected = reference(pool(student, 3, 4), teacher)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)
    student, teacher = maps(0, 2, 8, 3), maps(1, 2, 8, 5)
    np.testing.assert_allclose(loss([student], [teacher]), reference(student, teacher), rtol=1e-5)


def test_equal_and_empty_maps_have_a_flat_gradient_and_not_nan():
    some, zeros = maps(0, 2, 3, 3, 4), np.zeros((2, 3, 3, 4), np.float32)
    loss = AttentionTransfer("a", "b")
    assert (loss([some], [some]).numpy() == 0).all()
    assert (gradient(loss, [some], [some])[0] == 0).all()
    # Looking nowhere is at distance 1 from looking anywhere.
    for s, t, expected in ((zeros, zeros, 0), (zeros, some, 1), (some, zeros, 1)):
        np.testing.assert_allclose(loss([s], [t]), [expected] * 2, rtol=1e-6)
        assert np.isfinite(gradient(loss, [s], [t])[0]).all()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_gradient_is_what_finite_differences_give(p):
    student, teacher = maps(0, 2, 3, 2, 3), maps(1, 2, 3, 2, 4)
    loss = AttentionTransfer("a", "b", p=p)
    assert_gradient(loss, [student], [teacher], lambda s: reference(s[0], teacher, p))


def test_vectors_and_powers_below_1_are_refused():
    with pytest.raises(ShapeMismatchError, match=r"not vectors.*'a' \(None, 3\)"):
        AttentionTransfer("a", "b").build({"a": (None, 3)}, {"b": (None, 3)})
    for p in (0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="at least 1"):
            AttentionTransfer("a", "b", p=p)
