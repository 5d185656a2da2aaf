package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class BenchmarkTest {
    private val spec = TensorSpec("x", listOf(1, 4), DType.INT8, 1f, 0)
    private val opened = mutableListOf<Pair<Int, Kernels>>()
    private val engines = mutableListOf<FakeEngine>()
    private val factory = Engine.Factory { _, threads, kernels ->
        opened += threads to kernels
        FakeEngine(listOf(spec), listOf(spec)) { it }.also { engines += it }
    }

    @Test
    fun `each set of kernels runs with each number of threads, after the warm-up`() {
        var memory = 0L
        val benchmark = Benchmark(fakeModel(), factory) { memory.also { memory += 1024 } }
        var last = 0 to 0
        val rows = benchmark.run(listOf(1, 2), invokes = 5, warmUp = 3) { done, all ->
            last = done to all
            true
        }!!
        assertEquals(
            listOf(1 to Kernels.XNNPACK, 2 to Kernels.XNNPACK,
                1 to Kernels.BUILT_IN, 2 to Kernels.BUILT_IN),
            opened,
        )
        assertEquals(32 to 32, last)
        assertTrue(engines.all { it.closed && it.runs == 8 })
        assertTrue(rows.all { it.latency.milliseconds.size == 5 && it.memory == 1024L })
    }

    @Test
    fun `it stops on request and closes the engine`() {
        assertNull(Benchmark(fakeModel(), factory).run(invokes = 5) { done, _ -> done < 2 })
        assertEquals(2, engines.single().runs)
        assertTrue(engines.single().closed)
    }

    @Test
    fun `zero invokes are refused`() {
        assertThrows<IllegalArgumentException> { Benchmark(fakeModel(), factory).run(invokes = 0) }
    }

    @Test
    fun `rows are shared as text, with decimal points in every language`() {
        java.util.Locale.setDefault(java.util.Locale.GERMANY)
        val row = Benchmark.Row(Kernels.BUILT_IN, 4, Latency(doubleArrayOf(1.25)), 2048)
        assertEquals(
            "m.tflite\n\n" +
                "kernels  threads p50 ms  p90 ms  p99 ms    KiB\n" +
                "built-in       4   1.250   1.250   1.250     2\n",
            Benchmark.format(listOf("m.tflite"), listOf(row)),
        )
    }
}
