package org.kdtflite.core

import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest

/**
 * The bytes of a `.tflite` file.
 *
 * @property name Name to show.
 * @property content The file in a direct buffer, as the interpreter requires.
 * @property sha256 Its digest, 64 hexadecimal digits.
 */
class ModelFile private constructor(
    val name: String,
    private val content: ByteBuffer,
    val sha256: String,
) {
    /** Size in bytes. */
    val size: Int get() = content.capacity()

    /** A view of the file with its own position, at the first byte. */
    fun buffer(): ByteBuffer = content.duplicate().order(ByteOrder.nativeOrder()).apply { rewind() }

    companion object {
        const val LARGEST: Int = 128 shl 20

        /**
         * Reads a whole file; the stream stays open.
         *
         * @param largest Largest size in bytes that is accepted.
         * @throws Refusal NOT_READABLE, TOO_LARGE or NO_MODEL.
         */
        fun read(name: String, stream: InputStream, largest: Int = LARGEST): ModelFile {
            val bytes = try {
                stream.readAtMost(largest)
            } catch (failed: IOException) {
                throw Refusal(Refusal.Reason.NOT_READABLE, name, failed.message ?: "$failed")
            } ?: throw Refusal(Refusal.Reason.TOO_LARGE, name, "${largest shr 20}")
            if (bytes.size < 8 || String(bytes, 4, 4, Charsets.ISO_8859_1) != "TFL3") {
                throw Refusal(Refusal.Reason.NO_MODEL, name)
            }
            val content = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder())
            content.put(bytes).rewind()
            val digest = MessageDigest.getInstance("SHA-256").digest(bytes)
            return ModelFile(name, content, digest.joinToString("") { "%02x".format(it) })
        }

        // InputStream.readNBytes needs API 33.
        private fun InputStream.readAtMost(largest: Int): ByteArray? {
            val read = java.io.ByteArrayOutputStream()
            val part = ByteArray(1 shl 16)
            while (true) {
                val count = read(part)
                if (count < 0) return read.toByteArray()
                if (read.size() + count.toLong() > largest) return null
                read.write(part, 0, count)
            }
        }
    }
}
