package org.kdtflite.core

/**
 * Durations of invokes.
 *
 * @property milliseconds One for each invoke.
 */
class Latency(val milliseconds: DoubleArray) {
    private val sorted = milliseconds.sortedArray()

    init {
        require(milliseconds.isNotEmpty()) { "Expected at least one duration. Received: none." }
    }

    val p50: Double get() = percentile(50.0)
    val p90: Double get() = percentile(90.0)
    val p99: Double get() = percentile(99.0)

    /** Interpolates between the two nearest durations, as NumPy's `percentile` does by default. */
    fun percentile(percent: Double): Double {
        require(percent in 0.0..100.0) { "Expected 0 to 100. Received: $percent." }
        val place = percent / 100 * (sorted.size - 1)
        val below = place.toInt()
        val above = minOf(below + 1, sorted.size - 1)
        return sorted[below] + (sorted[above] - sorted[below]) * (place - below)
    }
}
