package org.kdtflite.core

import java.util.Locale

/**
 * Measures how fast a file runs on this device.
 *
 * @param memory Bytes of native memory in use, to measure what the interpreter takes.
 */
class Benchmark(
    private val model: ModelFile,
    private val factory: Engine.Factory,
    private val memory: () -> Long = { 0 },
) {
    /** @property memory Bytes that the interpreter took with its tensors (arena) and weights. */
    data class Row(val kernels: Kernels, val threads: Int, val latency: Latency, val memory: Long)

    /**
     * Runs each set of kernels with each number of threads.
     *
     * @param progress Called after each invoke with the number done and the total number; returning
     *     false stops.
     * @return The rows, or null if it was stopped.
     */
    fun run(
        threads: List<Int> = listOf(1, 2, 4),
        invokes: Int = 200,
        warmUp: Int = 20,
        progress: (done: Int, all: Int) -> Boolean = { _, _ -> true },
    ): List<Row>? {
        require(invokes > 0) { "Expected 1 invoke or more. Received: $invokes." }
        val settings = Kernels.entries.flatMap { kernels -> threads.map { kernels to it } }
        val all = settings.size * (warmUp + invokes)
        var done = 0
        return settings.map { (kernels, count) ->
            val before = memory()
            factory.open(model, count, kernels).use { engine ->
                val inputs = engine.inputs.map { it.buffer() }
                val outputs = engine.outputs.map { it.buffer() }
                val durations = DoubleArray(invokes)
                for (i in -warmUp until invokes) {
                    val start = System.nanoTime()
                    engine.run(inputs, outputs)
                    val milliseconds = (System.nanoTime() - start) / 1e6
                    if (i >= 0) durations[i] = milliseconds
                    if (!progress(++done, all)) return null
                }
                Row(kernels, count, Latency(durations), maxOf(0, memory() - before))
            }
        }
    }

    companion object {
        /** Formats the rows as text to share: a header, and one line per row. */
        fun format(header: List<String>, rows: List<Row>): String {
            val lines = rows.map {
                "%-8s %7d %7.3f %7.3f %7.3f %5.0f".format(
                    Locale.ROOT, if (it.kernels == Kernels.XNNPACK) "XNNPACK" else "built-in",
                    it.threads, it.latency.p50, it.latency.p90, it.latency.p99, it.memory / 1024.0,
                )
            }
            val title = "kernels  threads p50 ms  p90 ms  p99 ms    KiB"
            return (header + "" + title + lines).joinToString("\n", postfix = "\n")
        }
    }
}
