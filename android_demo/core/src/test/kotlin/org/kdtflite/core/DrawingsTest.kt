package org.kdtflite.core

import java.io.File
import kotlin.io.encoding.Base64
import kotlin.io.encoding.ExperimentalEncodingApi
import org.json.JSONArray
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.condition.EnabledIfSystemProperty

/** Drawings with the images that Python makes of them (tests/android/drawings.py). */
@EnabledIfSystemProperty(named = "kdtflite.drawings", matches = ".+")
class DrawingsTest {
    @OptIn(ExperimentalEncodingApi::class)
    @Test
    fun `every drawing gives the bytes that Python gives`() {
        val drawings = JSONArray(File(System.getProperty("kdtflite.drawings")).readText())
        assertTrue(drawings.length() >= 200)
        for (i in 0 until drawings.length()) {
            val drawing = drawings.getJSONObject(i)
            val image = Drawing.toImage(
                Base64.decode(drawing.getString("gray")),
                drawing.getInt("height"), drawing.getInt("width"),
                drawing.getInt("size"), drawing.getInt("box"),
            )
            assertArrayEquals(Base64.decode(drawing.getString("image")), image, "drawing $i")
        }
    }
}
