"""FSP compares the Gram matrices of couples of layers."""

import numpy as np
import pytest
from feature_references import assert_gradient, maps, pool

from kdtflite.distillation.losses.features.fsp import FSP
from kdtflite.errors import ConfigurationError, ShapeMismatchError

FOUR = ("a1", "b1", "a2", "b2")


def reference(students, teachers):
    def flow(first, second):
        size = np.minimum(first.shape[:2], second.shape[:2])
        first, second = pool(first[None], *size)[0], pool(second[None], *size)[0]
        g = np.zeros((first.shape[-1], second.shape[-1]))
        for i, j in np.ndindex(*size):
            g += np.outer(first[i, j], second[i, j]) / size.prod()
        return g

    total = np.zeros(len(students[0]))
    for k in range(0, len(students), 2):
        for n in range(len(total)):
            s = flow(np.float64(students[k][n]), np.float64(students[k + 1][n]))
            t = flow(np.float64(teachers[k][n]), np.float64(teachers[k + 1][n]))
            total[n] += ((t - s) ** 2).mean()
    return total


def test_the_value_worked_by_hand():
    # G = (1·1 + 2·3) / 2 = 3.5 against (0 + 2) / 2 = 1.
    student = [[[[1.0], [2.0]]], [[[1.0], [3.0]]]]
    teacher = [[[[0.0], [1.0]]], [[[5.0], [2.0]]]]
    np.testing.assert_allclose(FSP(("a", "b"), ("c", "d"))(student, teacher), [6.25], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_two_couples_of_random_maps(scale):
    shapes = [(3, 4, 5, 2), (3, 4, 5, 3), (3, 2, 2, 3), (3, 2, 2, 1)]
    student = [maps(i, *shape, scale=scale) for i, shape in enumerate(shapes)]
    teacher = [maps(9 + i, *shape, scale=scale) for i, shape in enumerate(shapes)]
    loss = FSP(FOUR, FOUR)(student, teacher)
    np.testing.assert_allclose(loss, reference(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-2, 1e-5])
def test_a_student_that_has_nearly_become_its_teacher(distance):
    teacher = [maps(i, 2, 4, 4, 3) for i in range(2)]
    student = [t + maps(5, *t.shape, scale=distance) for t in teacher]
    expected = reference(student, teacher)
    assert (expected > 0).all()
    np.testing.assert_allclose(FSP(FOUR[:2], FOUR[:2])(student, teacher), expected, rtol=1e-5)


def test_the_larger_map_of_a_couple_is_averaged_and_the_teacher_may_have_another_size():
    student = [maps(0, 2, 8, 8, 2), maps(1, 2, 4, 3, 3)]
    teacher = [maps(2, 2, 5, 5, 2), maps(3, 2, 7, 7, 3)]
    loss = FSP(FOUR[:2], FOUR[:2])(student, teacher)
    np.testing.assert_allclose(loss, reference(student, teacher), rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give():
    student = [maps(0, 2, 4, 2, 2), maps(1, 2, 2, 2, 3)]
    teacher = [maps(2, 2, 4, 2, 2), maps(3, 2, 2, 2, 3)]
    loss = FSP(FOUR[:2], FOUR[:2])
    assert_gradient(loss, student, teacher, lambda s: reference(s, teacher))


def test_a_layer_may_end_one_couple_and_begin_the_next():
    layers = ("a", "b", "b", "c")
    student = [maps(i, 2, 3, 3, 2) for i in (0, 1, 1, 2)]
    teacher = [maps(i, 2, 3, 3, 2) for i in (3, 4, 4, 5)]
    loss = FSP(layers, layers)(student, teacher)
    np.testing.assert_allclose(loss, reference(student, teacher), rtol=1e-5)


def test_what_it_cannot_compare_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="couples"):
        FSP("a", "b")
    shapes = {"a": (None, 4, 4, 2), "b": (None, 4, 4, 3)}
    wider = {"a": (None, 4, 4, 2), "b": (None, 4, 4, 5)}
    with pytest.raises(ShapeMismatchError, match=r"'b' \(None, 4, 4, 3\).*\(None, 4, 4, 5\)"):
        FSP(("a", "b"), ("a", "b")).build(shapes, wider)
    mixed = {"a": (None, 4, 4, 2), "b": (None, 4, 3)}
    with pytest.raises(ShapeMismatchError, match="couple's first layer, 'a'"):
        FSP(("a", "b"), ("a", "b")).build(mixed, mixed)
    vectors = {"a": (None, 2), "b": (None, 3)}
    with pytest.raises(ShapeMismatchError, match="not vectors"):
        FSP(("a", "b"), ("a", "b")).build(vectors, vectors)
