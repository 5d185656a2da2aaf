package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.kdtflite.core.ImageInput.Assumption

class ImageInputTest {
    private fun spec(
        vararg shape: Int, dtype: DType = DType.INT8, scale: Float? = 1 / 255f, zero: Int? = -128,
    ) = TensorSpec("image", shape.asList(), dtype, scale, zero)

    private fun image(
        spec: TensorSpec, mean: List<Float> = emptyList(), std: List<Float> = emptyList(),
    ) = ImageInput.of(spec, "file.tflite", ModelMetadata.Tensor(mean = mean, std = std))

    @Test
    fun `pixels become real values by the metadata's mean and std, then codes`() {
        val image = image(spec(1, 1, 3, 1), listOf(0f), listOf(255f))
        val buffer = image.spec.buffer()
        image.encode(byteArrayOf(0, 100, -1), buffer)
        // 100 / 255 · 255 = 100 steps above -128; -1 is the pixel 255
        assertArrayEquals(byteArrayOf(-128, -28, 127), ByteArray(3) { buffer.get(it) })
        assertEquals(null, image.assumption)
    }

    @Test
    fun `each channel has its own mean and std`() {
        val spec = spec(1, 1, 1, 3, dtype = DType.FLOAT32, scale = null, zero = null)
        val image = image(spec, listOf(1f, 2f, 3f), listOf(2f, 4f, 8f))
        val buffer = spec.buffer()
        image.encode(byteArrayOf(3, 4, 11), buffer)
        assertArrayEquals(floatArrayOf(1f, 0.5f, 1f), spec.decode(buffer))
    }

    @Test
    fun `without metadata the range of the input decides, and the assumption is stated`() {
        val pixels = spec(1, 2, 2, 1, scale = 1f)
        val unit = spec(1, 2, 2, 1)
        val signed = spec(1, 2, 2, 1, scale = 1 / 127.5f, zero = 0)
        val float = spec(1, 2, 2, 1, dtype = DType.FLOAT32, scale = null, zero = null)
        val plain = spec(1, 2, 2, 1, dtype = DType.UINT8, scale = null, zero = null)
        assertEquals(Assumption.PIXELS, ImageInput.of(pixels, "f").assumption)
        assertEquals(Assumption.ZERO_TO_ONE, ImageInput.of(unit, "f").assumption)
        assertEquals(Assumption.MINUS_ONE_TO_ONE, ImageInput.of(signed, "f").assumption)
        assertEquals(Assumption.ZERO_TO_ONE, ImageInput.of(float, "f").assumption)
        assertEquals(Assumption.PIXELS, ImageInput.of(plain, "f").assumption)
    }

    @Test
    fun `metadata that does not fit the channels is ignored`() {
        val image = image(spec(1, 2, 2, 3), listOf(0f, 0f), listOf(255f, 255f))
        assertEquals(Assumption.ZERO_TO_ONE, image.assumption)
        assertEquals(
            Assumption.ZERO_TO_ONE, image(spec(1, 2, 2, 1), listOf(0f), listOf(0f)).assumption,
        )
    }

    @Test
    fun `colors become gray by BT 601`() {
        val gray = image(spec(1, 1, 5, 1))
        val argb = intArrayOf(
            0xFFFF0000.toInt(), 0xFF00FF00.toInt(), 0xFF0000FF.toInt(), -1, 0x00123456,
        )
        // 0.299 · 255, 0.587 · 255, 0.114 · 255; white; and transparent pixels are white
        assertArrayEquals(byteArrayOf(76, 150.toByte(), 29, -1, -1), gray.bytes(argb))
        val color = image(spec(1, 1, 5, 3))
        assertArrayEquals(
            byteArrayOf(-1, 0, 0, 0, -1, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1), color.bytes(argb),
        )
    }

    @Test
    fun `the model's input can be shown`() {
        assertArrayEquals(
            intArrayOf(0xFF808080.toInt()), image(spec(1, 1, 1, 1)).argb(byteArrayOf(-128)),
        )
        assertArrayEquals(
            intArrayOf(0xFF010203.toInt()), image(spec(1, 1, 1, 3)).argb(byteArrayOf(1, 2, 3)),
        )
    }

    @Test
    fun `an input without channels is gray`() {
        val image = image(spec(1, 4, 5))
        assertEquals(listOf(4, 5, 1), listOf(image.height, image.width, image.channels))
    }

    @Test
    fun `an input that is not an image is refused, with its shape`() {
        for (shape in listOf(intArrayOf(1, 10), intArrayOf(2, 4, 4, 1), intArrayOf(1, 4, 4, 2))) {
            val refused = assertThrows<Refusal> { ImageInput.of(spec(*shape), "f.tflite") }
            assertEquals(Refusal.Reason.SHAPE, refused.reason)
            assertEquals(listOf("f.tflite", shape.joinToString(" × ")), refused.details.asList())
        }
    }
}
