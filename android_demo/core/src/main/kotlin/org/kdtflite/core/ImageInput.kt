package org.kdtflite.core

import java.nio.ByteBuffer
import kotlin.math.abs

/**
 * How pixels become the input of a file: size, channels, and the meaning of a pixel from 0 to 255:
 * real value = (pixel - mean) / std.
 *
 * @property mean One value per channel.
 * @property std One value per channel.
 * @property assumption The assumption made because the file does not say, or null.
 */
class ImageInput private constructor(
    val spec: TensorSpec,
    val height: Int,
    val width: Int,
    val channels: Int,
    val mean: List<Float>,
    val std: List<Float>,
    val assumption: Assumption?,
) {
    enum class Assumption(internal val mean: Float, internal val std: Float) {
        ZERO_TO_ONE(0f, 255f),
        MINUS_ONE_TO_ONE(127.5f, 127.5f),
        PIXELS(0f, 1f),
    }

    // There are only 256 pixel values per channel: each real value is computed once.
    private val real = List(channels) { channel ->
        FloatArray(256) { pixel -> (pixel - mean[channel]) / std[channel] }
    }

    /** Number of bytes in an image, height × width × channels. */
    val size: Int get() = height * width * channels

    /** Writes an image, [size] bytes of 0 to 255 row by row, channels last, as the file's input. */
    fun encode(bytes: ByteArray, into: ByteBuffer) {
        require(bytes.size == size) { "Expected $size bytes. Received: ${bytes.size}." }
        for (i in bytes.indices) {
            spec.put(into, i, real[i % channels][bytes[i].toInt() and 0xFF])
        }
    }

    /** Converts an image of this size from Android's pixels (0xAARRGGBB), blended onto white. */
    fun bytes(argb: IntArray): ByteArray {
        require(argb.size == height * width) {
            "Expected $height × $width pixels. Received: ${argb.size}."
        }
        val bytes = ByteArray(size)
        for ((i, pixel) in argb.withIndex()) {
            val alpha = pixel ushr 24
            val rgb = IntArray(3) { (((pixel ushr (16 - 8 * it)) and 0xFF) * alpha +
                255 * (255 - alpha) + 127) / 255 }
            if (channels == 1) bytes[i] = luma(rgb).toByte()
            else for (channel in 0 until 3) bytes[3 * i + channel] = rgb[channel].toByte()
        }
        return bytes
    }

    /** Converts an image's bytes to Android's pixels, to show the model's input. */
    fun argb(bytes: ByteArray): IntArray = IntArray(height * width) { i ->
        fun byte(channel: Int) = bytes[i * channels + channel % channels].toInt() and 0xFF
        (0xFF shl 24) or (byte(0) shl 16) or (byte(1) shl 8) or byte(2)
    }

    companion object {
        /**
         * @param file Name for the error.
         * @param metadata The metadata of this input, or null.
         * @throws Refusal SHAPE if the input is not an image.
         */
        fun of(spec: TensorSpec, file: String, metadata: ModelMetadata.Tensor? = null): ImageInput {
            // 1 × height × width × channels, or without channels.
            val shape = if (spec.shape.size == 3) spec.shape + 1 else spec.shape
            if (shape.size != 4 || shape[0] != 1 || shape[3] !in setOf(1, 3) || shape.min() < 1) {
                throw Refusal(Refusal.Reason.SHAPE, file, spec.shape.joinToString(" × "))
            }
            val channels = shape[3]
            val known = metadata != null && fits(metadata.mean, channels) && fits(metadata.std, channels) &&
                metadata.std.none { it == 0f }
            val assumption = if (known) null else assume(spec)
            fun spread(metadata: List<Float>?, assumed: Float?) =
                List(channels) { metadata?.get(it % metadata.size) ?: assumed!! }
            return ImageInput(
                spec, shape[1], shape[2], channels,
                mean = spread(if (known) metadata!!.mean else null, assumption?.mean),
                std = spread(if (known) metadata!!.std else null, assumption?.std),
                assumption = assumption,
            )
        }

        private fun fits(values: List<Float>, channels: Int) = values.size in setOf(1, channels)

        /** Guesses from the range of a quantized input: pixels, -1 to 1, or 0 to 1. */
        private fun assume(spec: TensorSpec): Assumption {
            val range = spec.range ?: return Assumption.ZERO_TO_ONE
            return when {
                maxOf(abs(range.start), range.endInclusive) > 16 -> Assumption.PIXELS
                range.start < -0.5f -> Assumption.MINUS_ONE_TO_ONE
                else -> Assumption.ZERO_TO_ONE
            }
        }

        /** Gray by ITU-R BT.601, in units of 2^-16. */
        private fun luma(rgb: IntArray): Int =
            (19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2] + 32768) shr 16
    }
}
