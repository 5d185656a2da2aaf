package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class DrawingTest {
    @Test
    fun `an empty canvas is an empty image`() {
        assertArrayEquals(ByteArray(784), Drawing.toImage(ByteArray(12), 3, 4))
    }

    @Test
    fun `one pixel fills the box, in the center`() {
        val image = Drawing.toImage(byteArrayOf(0, -1, 0, 0), 2, 2)
        // 20 × 20 of 255, its center 10: moved by 14 - 10 = 4
        for (row in 0 until 28) for (column in 0 until 28) {
            val inside = row in 4 until 24 && column in 4 until 24
            assertEquals(if (inside) -1 else 0, image[28 * row + column].toInt())
        }
    }

    @Test
    fun `a new pixel is the mean of what it covers, halves rounded up`() {
        // 2 × 2 of 0, 1, 1, 0 into one pixel: 0.5 → 1; in a box of one pixel
        assertArrayEquals(
            byteArrayOf(1), Drawing.toImage(byteArrayOf(0, 1, 1, 0), 2, 2, size = 1, box = 1),
        )
        // 1 × 3 into 1 × 2: (a + b / 2) / 1.5: (30 + 30) / 1.5 = 40, (30 + 90) / 1.5 = 80
        assertArrayEquals(
            byteArrayOf(40, 80),
            // in the lower row: the drawing's center is at 1/2, the image's at 1
            Drawing.toImage(byteArrayOf(30, 60, 90), 1, 3, size = 2, box = 2).copyOfRange(2, 4),
        )
    }

    @Test
    fun `the center of mass is in the middle, and nothing crosses the edge`() {
        val gray = ByteArray(64 * 48)
        for (row in 0 until 64) gray[48 * row] = 1
        gray[48 * 64 - 1] = -1
        // Its mass alone would require more than the 13 remaining columns.
        val image = Drawing.toImage(gray, 64, 48)
        assertEquals(28 * 28, image.size)
        assertTrue(image.any { it.toInt() != 0 })
    }

    @Test
    fun `MNIST's box is 20 of 28`() {
        assertEquals(20, Drawing.mnistBox(28))
        assertEquals(6, Drawing.mnistBox(8))
        assertEquals(1, Drawing.mnistBox(1))
    }

    @Test
    fun `a canvas of another size is refused`() {
        assertThrows<IllegalArgumentException> { Drawing.toImage(ByteArray(5), 2, 3) }
        assertThrows<IllegalArgumentException> { Drawing.toImage(ByteArray(0), 0, 3) }
        assertThrows<IllegalArgumentException> { Drawing.toImage(ByteArray(1), 1, 1, 4, 5) }
    }
}
