package org.kdtflite.core

import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class GoldenVectorsTest {
    @Test
    fun `a file from Python is read as little-endian`() {
        val golden = GoldenVectors.parse(goldenText())
        assertEquals("fake.tflite", golden.file)
        assertEquals(2, golden.xnnpackSteps)
        val sample = golden.samples.single()
        assertArrayEquals(floatArrayOf(1f, -2f), sample.inputs[0].real)
        assertArrayEquals(byteArrayOf(2, -4), sample.inputs[0].quantized)
        assertArrayEquals(byteArrayOf(4, -8), sample.outputs[0].quantized)
        val cases = golden.quantizers.single()
        assertEquals(DType.INT16, cases.quantizer.dtype)
        assertArrayEquals(floatArrayOf(0.5f), cases.values)
        assertArrayEquals(intArrayOf(258), cases.codes)
    }

    @Test
    fun `float outputs have no steps`() {
        val golden = GoldenVectors.parse(goldenText { getJSONObject("kernels").put("xnnpack_steps", JSONObject.NULL) })
        assertNull(golden.xnnpackSteps)
    }

    @Test
    fun `damaged and other text is refused with one sentence`() {
        val cases = mapOf(
            "" to "not golden vectors",
            "[1, 2]" to "not golden vectors",
            "{}" to "expected format kdtflite-golden-1, received: \"\".",
            goldenText { remove("samples") } to "samples",
            goldenText { put("format", "kdtflite-golden-2") } to "kdtflite-golden-2",
            goldenText { input().put("dtype", "int64") } to "unknown dtype \"int64\"",
            goldenText { input().put("scale", -1) } to "Expected a scale above 0",
            goldenText { sample("inputs").put("quantized", "AgI") } to "these are not golden",
            goldenText { sample("inputs").put("quantized", "????") } to "these are not golden",
            goldenText { sample("outputs").put("xnnpack", "AAAA") } to
                "expected 2 bytes in \"xnnpack\", received: 3.",
            goldenText { getJSONArray("samples").getJSONObject(0).getJSONArray("inputs").clear() }
                to "expected 1 entries, received: 0.",
        )
        for ((text, expected) in cases) {
            val refused = assertThrows<Refusal>(text) { GoldenVectors.parse(text) }
            assertEquals(Refusal.Reason.NO_GOLDEN, refused.reason)
            assertTrue(expected.lowercase() in refused.message!!.lowercase(), refused.message)
        }
    }

    private fun JSONObject.input() = getJSONArray("inputs").getJSONObject(0)

    private fun JSONObject.sample(ends: String) =
        getJSONArray("samples").getJSONObject(0).getJSONArray(ends).getJSONObject(0)
}

/** Golden vectors of [fakeModel] as Python writes them: y = 2 x, two values, int8. */
fun goldenText(change: JSONObject.() -> Unit = {}): String = JSONObject(
    """
    {"format": "kdtflite-golden-1",
     "model": {"file": "fake.tflite", "sha256": "${fakeModel().sha256}", "bytes": 16},
     "kernels": {"exact": "built-in", "xnnpack_steps": 2, "xnnpack_difference": 1.0},
     "inputs": [{"name": "x", "shape": [1, 2], "dtype": "int8", "scale": 0.5, "zero_point": 0}],
     "outputs": [{"name": "y", "shape": [1, 2], "dtype": "int8", "scale": 0.5, "zero_point": 0}],
     "samples": [
       {"inputs": [{"float": "AACAPwAAAMA=", "quantized": "Avw="}],
        "outputs": [{"quantized": "BPg=", "dequantized": "AAAAQAAAgMA=", "xnnpack": "BPo="}]}],
     "quantizer": [{"dtype": "int16", "scale": 1.0, "zero_point": 257, "count": 1,
                    "values": "AAAAPw==", "codes": "AgE="}]}
    """.trimIndent(),
).apply(change).toString()
