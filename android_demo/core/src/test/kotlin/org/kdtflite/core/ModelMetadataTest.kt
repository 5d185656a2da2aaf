package org.kdtflite.core

import java.io.File
import java.nio.ByteBuffer
import kotlin.random.Random
import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.condition.EnabledIfSystemProperty

class ModelMetadataTest {
    @Test
    fun `bytes that are not a model give no metadata, with the reason`() {
        val metadata = ModelMetadata.read(ByteBuffer.allocateDirect(16))
        assertFalse(metadata.isPresent)
        assertNotNull(metadata.problem)
    }

    @TestFactory
    @EnabledIfSystemProperty(named = "kdtflite.cases", matches = ".+")
    fun `metadata from Python is read`(): List<DynamicTest> =
        cases(".metadata.json").map { file ->
            dynamicTest(file.name) {
                val written = JSONObject(file.readText())
                val metadata = ModelMetadata.read(model(file).direct())
                assertEquals(null, metadata.problem)
                assertEquals(written.getBoolean("present"), metadata.isPresent)
                for ((key, value) in mapOf(
                    "name" to metadata.name, "description" to metadata.description,
                    "author" to metadata.author, "license" to metadata.license,
                )) assertEquals(written.getString(key), value, key)
                val input = metadata.inputs.firstOrNull() ?: ModelMetadata.Tensor()
                val output = metadata.outputs.firstOrNull() ?: ModelMetadata.Tensor()
                assertEquals(written.getJSONArray("mean").floats(), input.mean)
                assertEquals(written.getJSONArray("std").floats(), input.std)
                assertEquals(written.getJSONArray("labels").toList(), output.labels)
            }
        }

    @TestFactory
    @EnabledIfSystemProperty(named = "kdtflite.cases", matches = ".+")
    fun `damage never throws`(): List<DynamicTest> =
        cases(".metadata.json").filter { JSONObject(it.readText()).getBoolean("present") }.map {
            dynamicTest(it.name) {
                val bytes = model(it).readBytes()
                val random = Random(5)
                var problems = 0
                repeat(300) {
                    val damaged = bytes.copyOf(
                        if (random.nextInt(4) == 0) random.nextInt(bytes.size) else bytes.size,
                    )
                    // The root and the metadata are at the two ends.
                    repeat(8) {
                        val place = if (random.nextBoolean()) random.nextInt(64)
                            else damaged.size - 1 - random.nextInt(3000)
                        if (place in damaged.indices) damaged[place] = random.nextInt().toByte()
                    }
                    if (ModelMetadata.read(damaged.direct()).problem != null) problems++
                }
                assertTrue(problems > 0)
            }
        }

    private fun model(written: File) =
        File(written.parentFile, written.name.removeSuffix(".metadata.json") + ".tflite")

    private fun File.direct() = readBytes().direct()

    private fun ByteArray.direct(): ByteBuffer =
        ByteBuffer.allocateDirect(size).also { it.put(this).rewind() }

    private fun JSONArray.floats() = List(length()) { getDouble(it).toFloat() }
}
