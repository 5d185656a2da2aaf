package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class ClassifierTest {
    private val image = TensorSpec("image", listOf(1, 2, 2, 1), DType.UINT8, 1f, 0)
    private val scores = TensorSpec("scores", listOf(1, 3), DType.INT8, 0.5f, 0)

    private fun open(engine: FakeEngine) = Classifier.open(fakeModel(), { _, _, _ -> engine })

    @Test
    fun `an image is quantized, run, read back and ranked`() {
        val engine = FakeEngine(listOf(image), listOf(scores)) {
            floatArrayOf(it[0], it[3] / 4, -it[1])
        }
        val answer = open(engine).classify(byteArrayOf(3, 8, 0, 40))
        assertEquals(listOf(1, 0, 2), answer.top.map { it.index })
        assertEquals(listOf(10f, 3f, -8f), answer.top.map { it.score })
        assertTrue(answer.milliseconds >= 0)
    }

    @Test
    fun `a model with damaged or missing metadata is usable`() {
        val classifier = open(FakeEngine(listOf(image), listOf(scores)) { FloatArray(3) })
        assertTrue(!classifier.metadata.isPresent)
        assertEquals(emptyList<String>(), classifier.labels)
        assertEquals(ImageInput.Assumption.PIXELS, classifier.image.assumption)
    }

    @Test
    fun `a drawing fills every channel and is centered`() {
        val wide = TensorSpec("image", listOf(1, 1, 3, 3), DType.UINT8, 1f, 0)
        val classifier = open(FakeEngine(listOf(wide), listOf(scores)) { FloatArray(3) })
        assertArrayEquals(
            byteArrayOf(0, 0, 0, -1, -1, -1, 0, 0, 0),
            classifier.preprocessDrawing(byteArrayOf(-1), 1, 1),
        )
    }

    @Test
    fun `a file that does not classify images is refused, and the engine closed`() {
        val flat = TensorSpec("x", listOf(1, 4), DType.INT8, 1f, 0)
        val boxes = TensorSpec("boxes", listOf(1, 3, 4), DType.INT8, 1f, 0)
        val cases = mapOf(
            Refusal.Reason.INPUTS to FakeEngine(listOf(image, image), listOf(scores)) { it },
            Refusal.Reason.SHAPE to FakeEngine(listOf(flat), listOf(scores)) { it },
            Refusal.Reason.OUTPUT to FakeEngine(listOf(image), listOf(boxes)) { it },
        )
        for ((reason, engine) in cases) {
            assertEquals(reason, assertThrows<Refusal> { open(engine) }.reason)
            assertTrue(engine.closed)
        }
    }

    @Test
    fun `closing it closes the engine`() {
        val engine = FakeEngine(listOf(image), listOf(scores)) { FloatArray(3) }
        open(engine).close()
        assertTrue(engine.closed)
    }
}
