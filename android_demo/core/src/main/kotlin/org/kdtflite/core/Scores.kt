package org.kdtflite.core

import kotlin.math.exp

/**
 * One class of an answer.
 *
 * @property index The class.
 * @property label Its name, or the index if the file has no labels.
 * @property score The file's score for it, as a real value.
 * @property share The score as a share of 1, to draw a bar.
 * @property tied Whether another class has the same score, so that their order means nothing.
 */
data class Ranked(
    val index: Int,
    val label: String,
    val score: Float,
    val share: Float,
    val tied: Boolean,
)

object Scores {
    /**
     * Returns the [k] best classes, best first, ties in the order of their index. NaN comes last.
     */
    fun top(scores: FloatArray, k: Int, labels: List<String> = emptyList()): List<Ranked> {
        val shares = probabilities(scores)
        return scores.indices
            // + 0f makes -0 equal to 0; NaN comes after negative infinity.
            .sortedWith(compareBy<Int> { scores[it].isNaN() }.thenByDescending { scores[it] + 0f })
            .take(k)
            .map { index ->
                Ranked(
                    index,
                    labels.getOrNull(index) ?: "$index",
                    scores[index],
                    shares[index],
                    // == and not equals: 0 and -0 tie, NaN ties with nothing.
                    tied = scores.indices.any { it != index && scores[it] == scores[index] },
                )
            }
    }

    /**
     * Returns shares of 1. Scores that are probabilities (all from 0 to 1, with a sum within 2 % of
     * 1, or a single one) stay as they are. Others become their softmax, a single one its sigmoid.
     */
    fun probabilities(scores: FloatArray): FloatArray {
        if (scores.isEmpty()) return scores
        val inUnit = scores.all { it in 0f..1f }
        if (inUnit && (scores.size == 1 || scores.sum() in 0.98f..1.02f)) return scores.copyOf()
        if (scores.size == 1) {
            val share = 1 / (1 + exp(-scores[0].toDouble()))
            return floatArrayOf(if (share.isNaN()) 0f else share.toFloat())
        }
        val finite = scores.filter { !it.isNaN() }
        val largest = finite.maxOrNull() ?: return FloatArray(scores.size)
        val raised = DoubleArray(scores.size) { i ->
            when {
                scores[i].isNaN() -> 0.0
                scores[i] == largest -> 1.0 // also where it is infinite
                else -> exp(scores[i].toDouble() - largest)
            }
        }
        val total = raised.sum()
        return FloatArray(scores.size) { (raised[it] / total).toFloat() }
    }
}
