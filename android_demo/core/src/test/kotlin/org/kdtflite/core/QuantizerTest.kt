package org.kdtflite.core

import java.math.BigDecimal
import java.math.RoundingMode
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class QuantizerTest {
    private val unit = Quantizer(1f, 0, DType.INT8)

    @Test
    fun `halves are rounded away from zero`() {
        val values = floatArrayOf(0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -127.5f)
        val codes = intArrayOf(1, 2, 3, -1, -2, -3, 127, -128)
        for ((value, code) in values.zip(codes.asList())) {
            assertEquals(code, unit.quantize(value), "$value")
        }
    }

    @Test
    fun `the neighbors of a half are not halves`() {
        // floor(v + 0.5f) gives 1 for the first: the sum is rounded up in float32.
        assertEquals(0, unit.quantize(0.49999997f))
        assertEquals(0, unit.quantize(-0.49999997f))
        assertEquals(1, unit.quantize(0.50000006f))
        assertEquals(1, unit.quantize(1.4999999f))
    }

    @Test
    fun `values beyond the codes saturate, and infinities with them`() {
        assertEquals(127, unit.quantize(127.5f))
        assertEquals(127, unit.quantize(3e38f))
        assertEquals(127, unit.quantize(Float.POSITIVE_INFINITY))
        assertEquals(-128, unit.quantize(-1e9f))
        assertEquals(-128, unit.quantize(Float.NEGATIVE_INFINITY))
        // The quotient overflows before it is rounded.
        assertEquals(255, Quantizer(1e-9f, 3, DType.UINT8).quantize(1e38f))
        assertEquals(0, Quantizer(1e-9f, 3, DType.UINT8).quantize(-1e38f))
    }

    @Test
    fun `NaN becomes the code of zero`() {
        assertEquals(-7, Quantizer(0.1f, -7, DType.INT8).quantize(Float.NaN))
        assertEquals(128, Quantizer(0.1f, 128, DType.UINT8).quantize(Float.NaN))
    }

    @Test
    fun `zeros of both signs and denormals are the zero point`() {
        val quantizer = Quantizer(0.5f, 11, DType.INT8)
        for (x in listOf(0f, -0f, Float.MIN_VALUE, -Float.MIN_VALUE)) {
            assertEquals(11, quantizer.quantize(x))
        }
    }

    @Test
    fun `codes are read as real values`() {
        val quantizer = Quantizer(0.25f, -128, DType.INT8)
        assertEquals(0f, quantizer.dequantize(-128))
        assertEquals(63.75f, quantizer.dequantize(127))
        // (127 - 3) · float32(0.1) in float32, as NumPy has it: 12.400001
        assertEquals(12.400001f, Quantizer(0.1f, 3, DType.INT8).dequantize(127))
    }

    @Test
    fun `every code comes back from its real value`() {
        val random = Random(1)
        for (dtype in listOf(DType.INT8, DType.UINT8, DType.INT16)) repeat(20) {
            val zeroPoint = random.nextInt(dtype.least, dtype.greatest + 1)
            val quantizer = Quantizer(random.nextFloat() + 1e-6f, zeroPoint, dtype)
            for (code in dtype.least..dtype.greatest) {
                assertEquals(code, quantizer.quantize(quantizer.dequantize(code)))
            }
        }
    }

    @Test
    fun `codes are those of exact rational arithmetic on the float32 quotient`() {
        val random = Random(2026)
        repeat(200_000) {
            val dtype = listOf(DType.INT8, DType.UINT8, DType.INT16)[random.nextInt(3)]
            val zeroPoint = random.nextInt(dtype.least, dtype.greatest + 1)
            val scale = Math.scalb(1 + random.nextFloat(), random.nextInt(-20, 6))
            // Halves and their neighbors are as frequent as other values.
            val near = (random.nextInt(2 * dtype.least, 2 * dtype.greatest) + 0.5f) * scale
            val x = when (random.nextInt(4)) {
                0 -> near
                1 -> Math.nextUp(near)
                2 -> Math.nextDown(near)
                else -> Float.fromBits(random.nextInt())
            }
            if (!x.isFinite()) return@repeat
            val quotient = x / scale
            if (!quotient.isFinite()) return@repeat
            val exact = BigDecimal(quotient.toDouble())
                .setScale(0, RoundingMode.HALF_UP) // BigDecimal's: away from zero
                .add(BigDecimal(zeroPoint))
                .min(BigDecimal(dtype.greatest)).max(BigDecimal(dtype.least))
            val code = Quantizer(scale, zeroPoint, dtype).quantize(x)
            assertEquals(exact.toInt(), code, "$x / $scale + $zeroPoint as ${dtype.text}")
        }
    }

    @Test
    fun `the float32 quotient is the rational one, correctly rounded`() {
        val random = Random(3)
        repeat(20_000) {
            val scale = Math.scalb(1 + random.nextFloat(), random.nextInt(-12, 3))
            val x = (random.nextFloat() - 0.5f) * 400 * scale
            val rational = BigDecimal(x.toDouble())
                .divide(BigDecimal(scale.toDouble()), java.math.MathContext(60))
            assertEquals(rational.toFloat(), x / scale, "$x / $scale")
        }
    }

    @Test
    fun `a scale of zero and a float dtype are refused`() {
        assertThrows<IllegalArgumentException> { Quantizer(0f, 0, DType.INT8) }
        assertThrows<IllegalArgumentException> { Quantizer(Float.NaN, 0, DType.INT8) }
        assertThrows<IllegalArgumentException> { Quantizer(1f, 0, DType.FLOAT32) }
    }
}
