package org.kdtflite.core

/**
 * Turns a drawing into an image as MNIST's were made. It does the same as
 * `kdtflite/data/drawing.py`, in integers, so that both give the same bytes.
 */
object Drawing {
    /**
     * Crops, scales and centers a drawing (LeCun et al., 1998).
     *
     * 1. The bounding box of all pixels of 1 or more is cut out.
     * 2. Its longer side is scaled to [box] pixels, the other side to keep the aspect ratio
     *    (halves rounded up, at least one pixel). A new pixel is the mean of the area it covers.
     * 3. The result is moved so that its center of mass lies in the pixel that starts at the
     *    middle, but never over the edge.
     *
     * @param gray The canvas, height × width bytes row by row; 0 is paper, 255 is ink.
     * @param size Height and width of the image.
     * @param box Longer side of the drawing in the image; MNIST's is 20 of 28.
     * @return size × size bytes; all 0 for an empty canvas.
     */
    fun toImage(
        gray: ByteArray,
        height: Int,
        width: Int,
        size: Int = 28,
        box: Int = mnistBox(size),
    ): ByteArray {
        require(height > 0 && width > 0 && gray.size == height * width) {
            "Expected $height × $width bytes. Received: ${gray.size}."
        }
        require(size > 0 && box in 1..size) { "Expected box from 1 to $size. Received: $box." }
        val image = ByteArray(size * size)
        val ink = { row: Int, column: Int -> gray[row * width + column].toInt() and 0xFF }
        val rows = (0 until height).filter { row -> (0 until width).any { ink(row, it) > 0 } }
        if (rows.isEmpty()) return image
        val columns = (0 until width).filter { column -> rows.any { ink(it, column) > 0 } }
        val cut = Cut(gray, width, rows.first(), columns.first(),
            rows.last() - rows.first() + 1, columns.last() - columns.first() + 1)
        val small = cut.scale(box)
        val total = small.sumOf { it.sum() }.toLong()
        if (total == 0L) return image
        val top = offset(small.map { it.sum().toLong() }, total, size)
        val left = offset(small[0].indices.map { c -> small.sumOf { it[c] }.toLong() }, total, size)
        for ((row, values) in small.withIndex()) for ((column, value) in values.withIndex()) {
            image[(top + row) * size + left + column] = value.toByte()
        }
        return image
    }

    /** round(size · 20 / 28), the longer side of MNIST's digits; at least one pixel. */
    fun mnistBox(size: Int): Int = maxOf(1, (size * 20 + 14) / 28)

    private class Cut(
        private val gray: ByteArray, private val stride: Int,
        private val top: Int, private val left: Int, val height: Int, val width: Int,
    ) {
        fun scale(box: Int): List<IntArray> {
            val longest = maxOf(height, width)
            val rows = side(height, box, longest)
            val columns = side(width, box, longest)
            val area = height.toLong() * width
            return List(rows) { row ->
                IntArray(columns) { column -> ((2 * sum(row, rows, column, columns) + area) /
                    (2 * area)).toInt() }
            }
        }

        private fun side(side: Int, box: Int, longest: Int): Int =
            maxOf(1L, (2L * side * box + longest) / (2L * longest)).toInt()

        /** Sums the ink under one new pixel; an old pixel counts rows · columns. */
        private fun sum(row: Int, rows: Int, column: Int, columns: Int): Long {
            var sum = 0L
            for (r in findSources(row, rows, height)) {
                val vertical = overlap(r, rows, row, height)
                for (c in findSources(column, columns, width)) {
                    val ink = gray[(top + r) * stride + left + c].toInt() and 0xFF
                    sum += vertical * overlap(c, columns, column, width) * ink
                }
            }
            return sum
        }

        // On a line of source · target units, all pixel borders are integers.
        private fun findSources(target: Int, targets: Int, sources: Int): IntRange =
            (target.toLong() * sources / targets).toInt()..
                (((target + 1L) * sources - 1) / targets).toInt()

        private fun overlap(source: Int, targets: Int, target: Int, sources: Int): Long {
            val start = maxOf(source.toLong() * targets, target.toLong() * sources)
            val end = minOf((source + 1L) * targets, (target + 1L) * sources)
            return maxOf(end - start, 0)
        }
    }

    /** Returns ceil(size / 2 - center of mass), limited so that the drawing stays inside. */
    private fun offset(mass: List<Long>, total: Long, size: Int): Int {
        // Twice the moment: the center of pixel i lies at i + 1/2.
        val moment = mass.withIndex().sumOf { (i, value) -> value * (2 * i + 1) }
        val offset = -Math.floorDiv(moment - size * total, 2 * total)
        return minOf(maxOf(offset, 0), (size - mass.size).toLong()).toInt()
    }
}
