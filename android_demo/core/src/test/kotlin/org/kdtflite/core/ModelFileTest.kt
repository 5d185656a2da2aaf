package org.kdtflite.core

import java.io.IOException
import java.io.InputStream
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class ModelFileTest {
    private val bytes = "\u001c\u0000\u0000\u0000TFL3 and more".toByteArray(Charsets.ISO_8859_1)

    @Test
    fun `a file is read whole, into a direct buffer, with its digest`() {
        val model = ModelFile.read("m.tflite", bytes.inputStream())
        assertEquals(bytes.size, model.size)
        assertTrue(model.buffer().isDirect)
        assertEquals('T'.code, model.buffer().get(4).toInt())
        // hashlib.sha256(b"\x1c\0\0\0TFL3 and more").hexdigest()
        assertEquals(DIGEST, model.sha256)
    }

    @Test
    fun `each view has its own position`() {
        val model = ModelFile.read("m.tflite", bytes.inputStream())
        model.buffer().position(5)
        assertEquals(0, model.buffer().position())
    }

    @Test
    fun `a file that is not a model is refused`() {
        for (content in listOf(ByteArray(0), ByteArray(7), "PK and a zip file".toByteArray())) {
            val refused = assertThrows<Refusal> { ModelFile.read("m", content.inputStream()) }
            assertEquals(Refusal.Reason.NO_MODEL, refused.reason)
            assertEquals("m is not a .tflite file: its bytes 5 to 8 are not TFL3.", refused.message)
        }
    }

    @Test
    fun `a file is refused as soon as it is too large`() {
        val endless = object : InputStream() {
            override fun read() = 0
        }
        val refused = assertThrows<Refusal> { ModelFile.read("m", endless, 2 shl 20) }
        assertEquals(Refusal.Reason.TOO_LARGE, refused.reason)
        assertEquals("m is larger than the 2 MB that this app opens.", refused.message)
    }

    @Test
    fun `a file that cannot be read is refused with the system's message`() {
        val broken = object : InputStream() {
            override fun read(): Int = throw IOException("gone")
        }
        val refused = assertThrows<Refusal> { ModelFile.read("m", broken) }
        assertEquals("m cannot be read: gone", refused.message)
    }

    private companion object {
        const val DIGEST = "c12685641287c9d0dd3d6bdcc3c7130d46a3916b704e32e4f9f080559706dd00"
    }
}
