package org.kdtflite.core

import java.nio.ByteBuffer
import kotlin.math.abs

/** Runs a file on its golden vectors and compares, bit by bit. */
class SelfTest(
    private val model: ModelFile,
    private val golden: GoldenVectors,
    private val factory: Engine.Factory,
) {
    /**
     * The answers of one set of kernels, compared with the same kernels in Python.
     *
     * @property equal Number of samples whose outputs are bit-identical.
     * @property firstDifferent Number of the first other sample, from 0, or null.
     * @property sameClass Number of samples for which the class with the highest score is Python's.
     * @property steps Largest difference in codes; null if every output is float.
     * @property difference Largest difference in real values; NaN if an output is NaN.
     */
    data class Outcome(
        val kernels: Kernels,
        val equal: Int,
        val firstDifferent: Int?,
        val sameClass: Int,
        val steps: Int?,
        val difference: Float,
    )

    /**
     * @property quantizerValues Number of values tested on the quantizer alone.
     * @property quantizerWrong Number of these that got a wrong code.
     * @property inputsWrong Number of samples whose real values were quantized to wrong codes.
     * @property dequantizedWrong Number of samples whose codes were read as wrong real values.
     * @property stepsAllowed How far the device's kernels, which have another version, may differ
     *     from Python's: twice the difference between Python's own two sets, and at least three
     *     steps, 1 % of int8's range.
     * @property differenceAllowed The same for float outputs: at least 1 % of the largest.
     */
    data class Report(
        val samples: Int,
        val quantizerValues: Int,
        val quantizerWrong: Int,
        val inputsWrong: Int,
        val dequantizedWrong: Int,
        val outcomes: List<Outcome>,
        val stepsAllowed: Int,
        val differenceAllowed: Float,
    ) {
        val passes: Boolean
            get() = quantizerWrong == 0 && inputsWrong == 0 && dequantizedWrong == 0 &&
                outcomes.all { passes(it) }

        // Written so that NaN does not pass.
        fun passes(outcome: Outcome): Boolean =
            if (outcome.steps != null) outcome.steps <= stepsAllowed
            else outcome.difference <= differenceAllowed
    }

    /**
     * @param progress Called after each sample with the number done and the total number;
     *     returning false stops.
     * @return The report, or null if it was stopped.
     * @throws Refusal OTHER_MODEL, or a refusal of the engine.
     */
    fun run(progress: (done: Int, all: Int) -> Boolean = { _, _ -> true }): Report? {
        if (golden.sha256 != model.sha256) {
            throw Refusal(Refusal.Reason.OTHER_MODEL, model.name, golden.file)
        }
        val all = Kernels.entries.size * golden.samples.size
        val outcomes = Kernels.entries.mapIndexed { i, kernels ->
            compare(kernels) { progress(i * golden.samples.size + it, all) } ?: return null
        }
        val outputs = golden.samples.flatMap { it.outputs }
        val largest = outputs.maxOfOrNull { output -> output.dequantized.maxOf { abs(it) } } ?: 0f
        return Report(
            samples = golden.samples.size,
            quantizerValues = golden.quantizers.sumOf { it.values.size },
            quantizerWrong = golden.quantizers.sumOf { cases ->
                cases.values.indices.count {
                    cases.quantizer.quantize(cases.values[it]) != cases.codes[it]
                }
            },
            inputsWrong = golden.samples.count { !hasEqualInputs(it) },
            dequantizedWrong = golden.samples.count { !hasEqualRealValues(it) },
            outcomes = outcomes,
            stepsAllowed = maxOf(3, 2 * (golden.xnnpackSteps ?: 0)),
            differenceAllowed = maxOf(2 * golden.xnnpackDifference, 0.01f * largest),
        )
    }

    private fun compare(kernels: Kernels, progress: (Int) -> Boolean): Outcome? =
        factory.open(model, 1, kernels).use { engine ->
            if (engine.inputs.map { it.dtype to it.elements } !=
                golden.inputs.map { it.dtype to it.elements } ||
                engine.outputs.map { it.dtype to it.elements } !=
                golden.outputs.map { it.dtype to it.elements }
            ) {
                throw Refusal(Refusal.Reason.NO_GOLDEN, "their tensors do not match the model.")
            }
            val inputs = engine.inputs.map { it.buffer() }
            val outputs = engine.outputs.map { it.buffer() }
            var equal = 0
            var firstDifferent: Int? = null
            var sameClass = 0
            var steps: Int? = null
            var difference = 0f
            for ((number, sample) in golden.samples.withIndex()) {
                for ((buffer, input) in inputs.zip(sample.inputs)) fill(buffer, input.quantized)
                engine.run(inputs, outputs)
                var same = true
                for ((i, spec) in engine.outputs.withIndex()) {
                    val wanted = sample.outputs[i].of(kernels)
                    if (wanted.contentEquals(bytes(outputs[i]))) {
                        if (spec.dtype.isInteger) steps = steps ?: 0
                        continue
                    }
                    same = false
                    val expected = spec.buffer().also { fill(it, wanted) }
                    if (spec.dtype.isInteger) {
                        steps = maxOf(steps ?: 0, findLargestStep(spec.dtype, expected, outputs[i]))
                    }
                    for ((one, other) in spec.decode(expected).zip(spec.decode(outputs[i]))) {
                        val apart = abs(one - other)
                        // Once NaN, it stays NaN: no comparison with it is true.
                        if (apart.isNaN() || apart > difference) difference = apart
                    }
                }
                if (same) equal++ else firstDifferent = firstDifferent ?: number
                if (isSameClass(engine.outputs[0], sample.outputs[0].of(kernels), outputs[0])) {
                    sameClass++
                }
                if (!progress(number + 1)) return null
            }
            Outcome(kernels, equal, firstDifferent, sameClass, steps, difference)
        }

    // If two classes tie, either one is right.
    private fun isSameClass(spec: TensorSpec, wanted: ByteArray, given: ByteBuffer): Boolean {
        val expected = spec.decode(spec.buffer().also { fill(it, wanted) })
        val scores = spec.decode(given)
        return scores[expected.indices.maxByOrNull { expected[it] } ?: return true] == scores.max()
    }

    private fun GoldenVectors.Output.of(kernels: Kernels): ByteArray =
        if (kernels == Kernels.XNNPACK) xnnpack else quantized

    private fun findLargestStep(dtype: DType, one: ByteBuffer, other: ByteBuffer): Int =
        (0 until one.capacity() / dtype.bytes).maxOf {
            abs(dtype.code(one, it).toLong() - dtype.code(other, it))
        }.coerceAtMost(Int.MAX_VALUE.toLong()).toInt()

    private fun hasEqualInputs(sample: GoldenVectors.Sample): Boolean =
        golden.inputs.withIndex().all { (i, spec) ->
            val buffer = spec.buffer()
            spec.encode(sample.inputs[i].real, buffer)
            bytes(buffer).contentEquals(sample.inputs[i].quantized)
        }

    private fun hasEqualRealValues(sample: GoldenVectors.Sample): Boolean =
        golden.outputs.withIndex().all { (i, spec) ->
            val buffer = spec.buffer().also { fill(it, sample.outputs[i].quantized) }
            // For FloatArray, contentEquals compares bits, also NaN with NaN.
            spec.decode(buffer).contentEquals(sample.outputs[i].dequantized)
        }

    // Golden vectors are little-endian, and so is every Android device.
    private fun fill(buffer: ByteBuffer, bytes: ByteArray) {
        buffer.clear()
        buffer.put(bytes)
        buffer.rewind()
    }

    private fun bytes(buffer: ByteBuffer): ByteArray =
        ByteArray(buffer.capacity()).also { buffer.duplicate().apply { rewind() }.get(it) }
}
