package org.kdtflite.core

import java.io.File
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.condition.EnabledIfSystemProperty

/** Repeats golden vectors from Python with this module's arithmetic alone. */
@EnabledIfSystemProperty(named = "kdtflite.cases", matches = ".+")
class GoldenFilesTest {
    @TestFactory
    fun `every code and every real value is Python's, bit by bit`(): List<DynamicTest> =
        cases(".json").filterNot { it.name.endsWith(".metadata.json") }.map { file ->
            dynamicTest(file.nameWithoutExtension) {
                val golden = GoldenVectors.parse(file.readText())
                check(golden.samples.isNotEmpty() && golden.quantizers.isNotEmpty())
                for (sample in golden.samples) {
                    for ((spec, input) in golden.inputs.zip(sample.inputs)) {
                        val buffer = spec.buffer()
                        spec.encode(input.real, buffer)
                        val codes = ByteArray(buffer.capacity()).also { buffer.get(it) }
                        assertArrayEquals(input.quantized, codes)
                    }
                    for ((spec, output) in golden.outputs.zip(sample.outputs)) {
                        val buffer = spec.buffer().apply { put(output.quantized).rewind() }
                        assertArrayEquals(output.dequantized, spec.decode(buffer))
                    }
                }
                for (cases in golden.quantizers) for ((i, value) in cases.values.withIndex()) {
                    assertEquals(cases.codes[i], cases.quantizer.quantize(value), "$value")
                }
            }
        }
}

/** Files of the folder that tests/android/models.py filled, or build.py with the app's model. */
internal fun cases(end: String): List<File> =
    File(System.getProperty("kdtflite.cases")).listFiles()!!.filter { it.name.endsWith(end) }
        .sorted()
