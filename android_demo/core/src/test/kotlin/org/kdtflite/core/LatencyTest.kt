package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class LatencyTest {
    @Test
    fun `percentiles are interpolated as NumPy does`() {
        // numpy.percentile([4, 1, 3, 2], [50, 90, 99]) is 2.5, 3.7, 3.97
        val latency = Latency(doubleArrayOf(4.0, 1.0, 3.0, 2.0))
        assertEquals(2.5, latency.p50, 1e-12)
        assertEquals(3.7, latency.p90, 1e-12)
        assertEquals(3.97, latency.p99, 1e-12)
        assertEquals(1.0, latency.percentile(0.0))
        assertEquals(4.0, latency.percentile(100.0))
    }

    @Test
    fun `one duration is every percentile`() {
        assertEquals(7.0, Latency(doubleArrayOf(7.0)).p99)
    }

    @Test
    fun `an empty list is refused`() {
        assertThrows<IllegalArgumentException> { Latency(doubleArrayOf()) }
    }
}
