package org.kdtflite.core

import kotlin.math.abs
import kotlin.math.sign
import kotlin.math.truncate

/**
 * Turns real values into codes and back, with the arithmetic of `kdtflite/lite/tensors.py`:
 *
 *     q = clamp(round(x / scale) + zero_point)        x = (q - zero_point) · scale
 *
 * in float32, halves away from zero. NaN has no correct code and becomes the code of 0.0.
 *
 * @property scale Step between two codes; positive.
 * @property zeroPoint The code of 0.0.
 * @property dtype The type in which the codes are stored.
 */
class Quantizer(val scale: Float, val zeroPoint: Int, val dtype: DType) {
    init {
        require(dtype.isInteger) { "Expected an integer dtype. Received: ${dtype.text}." }
        require(scale > 0) { "Expected a scale above 0. Received: $scale." }
    }

    fun quantize(x: Float): Int {
        val steps = x / scale
        if (steps.isNaN()) return zeroPoint.coerceIn(dtype.least, dtype.greatest)
        val whole = truncate(steps)
        // Not floor(v + 0.5f): in float32 0.49999997f + 0.5f is 1. v - truncate(v) is exact.
        val rounded = if (abs(steps - whole) >= 0.5f) whole + sign(steps) else whole
        // Above 2^24 float32 skips integers, but every 16-bit code has saturated long before.
        val code = rounded.coerceIn(-LARGEST, LARGEST).toInt().toLong() + zeroPoint
        return code.coerceIn(dtype.least.toLong(), dtype.greatest.toLong()).toInt()
    }

    fun dequantize(code: Int): Float = (code - zeroPoint).toFloat() * scale

    private companion object {
        const val LARGEST = 16_777_216f
    }
}
