package org.kdtflite.core

import java.nio.ByteOrder
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class TensorSpecTest {
    private fun spec(dtype: DType, scale: Float? = null, zeroPoint: Int? = null, size: Int = 3) =
        TensorSpec("x", listOf(1, size), dtype, scale, zeroPoint)

    @Test
    fun `a buffer is direct, in the processor's order and of the tensor's size`() {
        val buffer = TensorSpec("x", listOf(1, 2, 3), DType.INT16).buffer()
        assertTrue(buffer.isDirect)
        assertEquals(ByteOrder.nativeOrder(), buffer.order())
        assertEquals(12, buffer.capacity())
        assertEquals(0, buffer.position())
    }

    @Test
    fun `uint8 codes above 127 stay positive`() {
        val spec = spec(DType.UINT8, 1f, 0)
        val buffer = spec.buffer()
        spec.encode(floatArrayOf(127f, 128f, 255f), buffer)
        assertArrayEquals(byteArrayOf(127, -128, -1), ByteArray(3) { buffer.get(it) })
        assertArrayEquals(floatArrayOf(127f, 128f, 255f), spec.decode(buffer))
    }

    @Test
    fun `int16 codes are two bytes, in order`() {
        val spec = spec(DType.INT16, 0.5f, 0)
        val buffer = spec.buffer()
        spec.encode(floatArrayOf(-1f, 16383.5f, -20000f), buffer)
        assertEquals(-2, buffer.getShort(0).toInt())
        assertEquals(32767, buffer.getShort(2).toInt())
        assertEquals(-32768, buffer.getShort(4).toInt())
        assertArrayEquals(floatArrayOf(-1f, 16383.5f, -16384f), spec.decode(buffer))
    }

    @Test
    fun `float32 passes unchanged, including NaN and zeros of both signs`() {
        val spec = spec(DType.FLOAT32)
        val buffer = spec.buffer()
        val values = floatArrayOf(-0f, Float.NaN, 1.5f)
        spec.encode(values, buffer)
        assertArrayEquals(values, spec.decode(buffer))
        assertNull(spec.range)
    }

    @Test
    fun `an integer that is not quantized is its own real value`() {
        val spec = spec(DType.INT32)
        val buffer = spec.buffer()
        spec.encode(floatArrayOf(-3f, 0f, 7f), buffer)
        assertEquals(7, buffer.getInt(8))
        assertArrayEquals(floatArrayOf(-3f, 0f, 7f), spec.decode(buffer))
    }

    @Test
    fun `the range is that of the least and the greatest code`() {
        assertEquals(-64f..63.5f, spec(DType.INT8, 0.5f, 0).range)
        assertEquals(0f..255f, spec(DType.UINT8, 1f, 0).range)
    }

    @Test
    fun `another number of values is refused`() {
        val spec = spec(DType.INT8, 1f, 0)
        val refused = assertThrows<IllegalArgumentException> {
            spec.encode(floatArrayOf(1f), spec.buffer())
        }
        assertEquals("Expected 3 values for x. Received: 1.", refused.message)
    }

    @Test
    fun `dtypes are found by the name that Java and Python give them`() {
        assertEquals(DType.FLOAT32, DType.fromName("FLOAT32"))
        assertEquals(DType.INT16, DType.fromName("int16"))
        assertNull(DType.fromName("int64"))
    }

    @Test
    fun `its text describes it`() {
        assertEquals(
            "x 1 × 3 int8, scale 0.5, zero point -128", "${spec(DType.INT8, 0.5f, -128)}",
        )
        assertEquals("x 1 × 3 float32", "${spec(DType.FLOAT32)}")
    }
}
