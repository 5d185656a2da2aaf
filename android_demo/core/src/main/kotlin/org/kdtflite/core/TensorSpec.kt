package org.kdtflite.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * An input or output of a file.
 *
 * @property name Name in the file.
 * @property shape Shape as stored; the batch size is usually 1.
 * @property dtype The type in which the values are stored.
 * @property scale Step between two codes, or null if the tensor is not quantized.
 * @property zeroPoint Code of 0.0, or null if the tensor is not quantized.
 */
data class TensorSpec(
    val name: String,
    val shape: List<Int>,
    val dtype: DType,
    val scale: Float? = null,
    val zeroPoint: Int? = null,
) {
    private val quantizer: Quantizer? =
        if (scale == null || zeroPoint == null) null else Quantizer(scale, zeroPoint, dtype)

    /** Number of values. */
    val elements: Int get() = shape.fold(1) { product, size -> product * size }

    val isQuantized: Boolean get() = quantizer != null

    /** Smallest and largest real value, or null for float32. */
    val range: ClosedFloatingPointRange<Float>?
        get() = when {
            !dtype.isInteger -> null
            else -> real(dtype.least)..real(dtype.greatest)
        }

    /** A new direct buffer of this tensor's size, in the byte order of the processor. */
    fun buffer(): ByteBuffer =
        // A new buffer is big-endian on every processor.
        ByteBuffer.allocateDirect(elements * dtype.bytes).order(ByteOrder.nativeOrder())

    /** Writes real values into a buffer in the file's format. */
    fun encode(values: FloatArray, into: ByteBuffer) {
        require(values.size == elements) {
            "Expected $elements values for $name. Received: ${values.size}."
        }
        for (i in values.indices) put(into, i, values[i])
    }

    /** Reads a buffer as real values. */
    fun decode(from: ByteBuffer): FloatArray = FloatArray(elements) { i ->
        if (dtype == DType.FLOAT32) from.getFloat(4 * i) else real(dtype.code(from, i))
    }

    /** The code of a real value; the integer itself if the tensor is not quantized. */
    fun code(value: Float): Int =
        quantizer?.quantize(value) ?: value.toInt().coerceIn(dtype.least, dtype.greatest)

    internal fun put(into: ByteBuffer, index: Int, value: Float) {
        if (dtype == DType.FLOAT32) into.putFloat(4 * index, value)
        else dtype.putCode(into, index, code(value))
    }

    private fun real(code: Int): Float = quantizer?.dequantize(code) ?: code.toFloat()

    override fun toString(): String {
        val quantized = if (isQuantized) ", scale $scale, zero point $zeroPoint" else ""
        return "$name ${shape.joinToString(" × ")} ${dtype.text}$quantized"
    }
}
