package org.kdtflite.core

import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class SelfTestTest {
    private val spec = TensorSpec("x", listOf(1, 2), DType.INT8, 0.5f, 0)

    private fun run(
        text: String = goldenText(),
        progress: (Int, Int) -> Boolean = { _, _ -> true },
        answer: (FloatArray) -> FloatArray,
    ): SelfTest.Report? {
        val factory = Engine.Factory { _, _, _ -> FakeEngine(listOf(spec), listOf(spec), answer) }
        return SelfTest(fakeModel(), GoldenVectors.parse(text), factory).run(progress)
    }

    @Test
    fun `each set of kernels is compared with its own answers`() {
        // 2 x is the answer of the built-in kernels; XNNPACK's second code is -6 instead of -8.
        val report = run { floatArrayOf(2 * it[0], 2 * it[1]) }!!
        val (xnnpack, builtIn) = report.outcomes
        assertEquals(SelfTest.Outcome(Kernels.BUILT_IN, 1, null, 1, 0, 0f), builtIn)
        assertEquals(SelfTest.Outcome(Kernels.XNNPACK, 0, 0, 1, 2, 1f), xnnpack)
        assertEquals(4, report.stepsAllowed)
        assertTrue(report.passes)
        assertEquals(1, report.quantizerValues)
        assertEquals(0, report.quantizerWrong)
    }

    @Test
    fun `a step more than allowed does not pass`() {
        // Codes 4 and -6 are XNNPACK's; 4 and -11 are five steps away.
        val report = run { floatArrayOf(2 * it[0], 2 * it[1] - 1.5f) }!!
        assertEquals(5, report.outcomes[0].steps)
        assertFalse(report.passes)
    }

    @Test
    fun `a wrong quantizer, wrong inputs and wrong real values are counted`() {
        fun JSONObject.first(ends: String) =
            getJSONArray("samples").getJSONObject(0).getJSONArray(ends).getJSONObject(0)
        val answer = { x: FloatArray -> floatArrayOf(2 * x[0], 2 * x[1]) }
        val codes = run(goldenText {
            getJSONArray("quantizer").getJSONObject(0).put("codes", "AQE=")
        }, answer = answer)!!
        assertEquals(1, codes.quantizerWrong)
        // The file still gets the codes that the vectors hold.
        val inputs = run(goldenText { first("inputs").put("float", "AACAPwAAgMA=") }, answer = answer)!!
        assertEquals(1, inputs.inputsWrong)
        assertEquals(1, inputs.outcomes[1].equal)
        val real = run(goldenText { first("outputs").put("dequantized", "AAAAQAAAAMA=") }, answer = answer)!!
        assertEquals(1, real.dequantizedWrong)
        for (report in listOf(codes, inputs, real)) assertFalse(report.passes)
    }

    @Test
    fun `NaN from a float file does not pass`() {
        val float = TensorSpec("y", listOf(1, 2), DType.FLOAT32)
        val text = goldenText {
            getJSONObject("kernels").put("xnnpack_steps", JSONObject.NULL)
            getJSONArray("outputs").getJSONObject(0)
                .put("dtype", "float32").put("scale", JSONObject.NULL)
            getJSONArray("samples").getJSONObject(0).getJSONArray("outputs").getJSONObject(0)
                .put("quantized", "AAAAQAAAgMA=").put("xnnpack", "AAAAQAAAgMA=")
        }
        val factory = Engine.Factory { _, _, _ ->
            FakeEngine(listOf(spec), listOf(float)) { floatArrayOf(Float.NaN, -4f) }
        }
        val report = SelfTest(fakeModel(), GoldenVectors.parse(text), factory).run()!!
        assertTrue(report.outcomes.all { it.difference.isNaN() && it.steps == null })
        assertFalse(report.passes)
    }

    @Test
    fun `another class is counted, a tie with the right one is not another`() {
        val other = run { floatArrayOf(2 * it[1], 2 * it[0]) }!!
        assertEquals(0, other.outcomes[1].sameClass)
        val tied = run { floatArrayOf(2 * it[0], 2 * it[0]) }!!
        assertEquals(1, tied.outcomes[1].sameClass)
    }

    @Test
    fun `it stops on request`() {
        assertNull(run(progress = { _, _ -> false }) { it })
    }

    @Test
    fun `vectors of another model are refused`() {
        val text = goldenText { getJSONObject("model").put("sha256", "0").put("file", "b.tflite") }
        val refused = assertThrows<Refusal> { run(text) { it } }
        assertEquals(Refusal.Reason.OTHER_MODEL, refused.reason)
        assertEquals(
            "The golden vectors belong to b.tflite, whose bytes differ from those of fake.tflite.",
            refused.message,
        )
    }
}
