package org.kdtflite.core

import java.nio.ByteBuffer

/**
 * The type in which a tensor's values are stored.
 *
 * @property text The name that files, Python and golden vectors use.
 * @property bytes Size of one value.
 * @property least Smallest code; unused for [FLOAT32].
 * @property greatest Largest code; unused for [FLOAT32].
 */
enum class DType(val text: String, val bytes: Int, val least: Int, val greatest: Int) {
    INT8("int8", 1, -128, 127),
    UINT8("uint8", 1, 0, 255),
    INT16("int16", 2, -32768, 32767),
    INT32("int32", 4, Int.MIN_VALUE, Int.MAX_VALUE),
    FLOAT32("float32", 4, 0, 0);

    val isInteger: Boolean get() = this != FLOAT32

    /** Reads the code at a position counted in values. Java's bytes are signed: uint8 is not. */
    fun code(buffer: ByteBuffer, index: Int): Int = when (this) {
        INT8 -> buffer.get(index).toInt()
        UINT8 -> buffer.get(index).toInt() and 0xFF
        INT16 -> buffer.getShort(2 * index).toInt()
        INT32 -> buffer.getInt(4 * index)
        FLOAT32 -> error("A float32 tensor holds no codes.")
    }

    /** Writes a code at a position counted in values. */
    fun putCode(buffer: ByteBuffer, index: Int, code: Int) {
        when (this) {
            INT8, UINT8 -> buffer.put(index, code.toByte())
            INT16 -> buffer.putShort(2 * index, code.toShort())
            INT32 -> buffer.putInt(4 * index, code)
            FLOAT32 -> error("A float32 tensor holds no codes.")
        }
    }

    companion object {
        /** Returns the dtype with this name, or null if the app does not support it (int64, bool, string). */
        fun fromName(text: String): DType? = entries.firstOrNull { it.text == text.lowercase() }
    }
}
