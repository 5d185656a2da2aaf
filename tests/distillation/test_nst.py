"""NST is the squared maximum mean discrepancy, computed here kernel by kernel."""

import numpy as np
import pytest
from feature_references import assert_gradient, gradient, maps, pool

from kdtflite.distillation.losses.features.nst import NST
from kdtflite.errors import ShapeMismatchError


def reference(student, teacher):
    def channels(sample):
        flat = sample.reshape(-1, sample.shape[-1]).T
        lengths = np.sqrt((flat**2).sum(axis=1, keepdims=True))
        return np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 0)

    def kernel(one, other):
        return np.mean([[float(f @ g) ** 2 for g in other] for f in one])

    values = []
    for s, t in zip(np.float64(student), np.float64(teacher), strict=True):
        s, t = channels(s), channels(t)
        values.append(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))
    return np.array(values)


def test_the_value_worked_by_hand():
    # One channel each, (1, 0) and (1, 1)/√2: kernels 1, 1 and 1/2.
    loss = NST("a", "b")([[[[2.0], [0.0]]]], [[[[3.0], [3.0]]]])
    np.testing.assert_allclose(loss, [1.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("narrow", "wide"), [(1, 1), (1, 5), (7, 4)])
def test_random_maps_of_any_size_and_width(scale, narrow, wide):
    student, teacher = maps(0, 4, 3, 5, narrow, scale=scale), maps(1, 4, 3, 5, wide, scale=scale)
    loss = NST("a", "b")([student], [teacher])
    np.testing.assert_allclose(loss, reference(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_a_student_that_has_nearly_become_its_teacher(distance):
    teacher = maps(0, 4, 3, 5, 6)
    student = teacher + maps(1, 4, 3, 5, 6, scale=distance)
    expected = reference(student, teacher)
    assert (expected > 0).all()
    np.testing.assert_allclose(NST("a", "b")([student], [teacher]), expected, rtol=1e-5)


def test_maps_of_other_sizes():
    student, teacher = maps(0, 2, 3, 4, 3), maps(1, 2, 8, 8, 5)
    expected = reference(student, pool(teacher, 3, 4))
    np.testing.assert_allclose(NST("a", "b")([student], [teacher]), expected, rtol=1e-5)


def test_channels_that_never_respond_have_a_flat_gradient_and_not_nan():
    some = maps(0, 2, 3, 3, 4)
    some[..., 1] = 0
    zeros = np.zeros_like(some)
    for s, t in ((zeros, zeros), (zeros, some), (some, zeros), (some, maps(1, 2, 3, 3, 4))):
        np.testing.assert_allclose(NST("a", "b")([s], [t]), reference(s, t), rtol=1e-5)
        slope = gradient(NST("a", "b"), [s], [t])[0]
        assert np.isfinite(slope).all()
        assert (slope[..., 1] == 0).all()
    np.testing.assert_array_equal(NST("a", "b")([some], [some]), 0)


def test_the_gradient_is_what_finite_differences_give():
    student, teacher = maps(0, 2, 3, 2, 3), maps(1, 2, 3, 2, 4)
    assert_gradient(NST("a", "b"), [student], [teacher], lambda s: reference(s[0], teacher))


def test_vectors_are_refused():
    with pytest.raises(ShapeMismatchError, match=r"not vectors.*'a' \(None, 3\)"):
        NST("a", "b").build({"a": (None, 3)}, {"b": (None, 3)})
