package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class ScoresTest {
    @Test
    fun `the best come first, with their labels`() {
        val top = Scores.top(floatArrayOf(-3f, 2f, 1f, 0f), 3, listOf("a", "b", "c"))
        assertEquals(listOf(1, 2, 3), top.map { it.index })
        assertEquals(listOf("b", "c", "3"), top.map { it.label })
        assertTrue(top.none { it.tied })
    }

    @Test
    fun `equal scores are marked as ties, in the order of their classes`() {
        val top = Scores.top(floatArrayOf(1f, 5f, 5f, 1f, 0f), 5)
        assertEquals(listOf(1, 2, 0, 3, 4), top.map { it.index })
        assertEquals(listOf(true, true, true, true, false), top.map { it.tied })
    }

    @Test
    fun `a tie with a class that is not shown is marked too`() {
        assertTrue(Scores.top(floatArrayOf(5f, 5f), 1).single().tied)
    }

    @Test
    fun `zeros of both signs tie`() {
        val top = Scores.top(floatArrayOf(-0f, 0f), 2)
        assertEquals(listOf(0, 1), top.map { it.index })
        assertTrue(top.all { it.tied })
    }

    @Test
    fun `NaN comes last and ties with nothing`() {
        val top = Scores.top(floatArrayOf(Float.NaN, Float.NEGATIVE_INFINITY, Float.NaN, 1f), 4)
        assertEquals(listOf(3, 1, 0, 2), top.map { it.index })
        assertTrue(top.none { it.tied })
        assertEquals(0f, top[2].share)
    }

    @Test
    fun `logits become shares by softmax`() {
        // e^0, e^-1, e^-2 over their sum 1.503215
        val shares = Scores.probabilities(floatArrayOf(1000f, 999f, 998f))
        assertArrayEquals(floatArrayOf(0.66524f, 0.24473f, 0.09003f), shares, 1e-5f)
    }

    @Test
    fun `all-negative logits and infinite ones have shares too`() {
        val half = Scores.probabilities(floatArrayOf(-1e30f, -1e30f))
        assertArrayEquals(floatArrayOf(0.5f, 0.5f), half)
        val infinite = Scores.probabilities(floatArrayOf(Float.POSITIVE_INFINITY, 0f))
        assertArrayEquals(floatArrayOf(1f, 0f), infinite)
        assertArrayEquals(
            floatArrayOf(0f, 0f), Scores.probabilities(floatArrayOf(Float.NaN, Float.NaN)),
        )
    }

    @Test
    fun `probabilities stay as they are, those of 256 levels too`() {
        // int8 probabilities of 1 / 256 seldom add up to 1.
        val scores = floatArrayOf(0.99609375f, 0f, 0.01171875f)
        assertArrayEquals(scores, Scores.probabilities(scores))
    }

    @Test
    fun `a single output is a probability or a logit`() {
        assertArrayEquals(floatArrayOf(0.25f), Scores.probabilities(floatArrayOf(0.25f)))
        assertEquals(0.98201f, Scores.probabilities(floatArrayOf(4f)).single(), 1e-5f)
        assertEquals(0f, Scores.probabilities(floatArrayOf(Float.NaN)).single())
    }

    @Test
    fun `fewer classes than requested, or none`() {
        assertEquals(2, Scores.top(floatArrayOf(1f, 2f), 3).size)
        assertEquals(emptyList<Ranked>(), Scores.top(floatArrayOf(), 3))
    }
}
