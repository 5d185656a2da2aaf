package org.kdtflite.demo

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import java.io.File
import java.io.IOException
import org.kdtflite.core.ImageInput
import org.kdtflite.core.Refusal

/** A picture from the gallery, upright, at most about twice [SHOWN] pixels on each side. */
class Picture private constructor(val bitmap: Bitmap) {
    /** Returns the center of the picture as bytes, in the size that the model expects. */
    fun bytes(image: ImageInput): ByteArray {
        // The largest central part with the model's proportions.
        val width = minOf(bitmap.width, bitmap.height * image.width / image.height).coerceAtLeast(1)
        val height =
            minOf(bitmap.height, bitmap.width * image.height / image.width).coerceAtLeast(1)
        var part = Bitmap.createBitmap(
            bitmap, (bitmap.width - width) / 2, (bitmap.height - height) / 2, width, height,
        )
        // Halve it first: the filter reads only four pixels and would skip the others.
        while (part.width >= 2 * image.width && part.height >= 2 * image.height) {
            part = Bitmap.createScaledBitmap(part, part.width / 2, part.height / 2, true)
        }
        part = Bitmap.createScaledBitmap(part, image.width, image.height, true)
        val argb = IntArray(image.width * image.height)
        part.getPixels(argb, 0, image.width, 0, 0, image.width, image.height)
        return image.bytes(argb)
    }

    companion object {
        private const val SHOWN = 1024

        /** @throws Refusal NO_PICTURE. */
        fun read(file: File): Picture {
            val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
            BitmapFactory.decodeFile(file.path, bounds)
            val options = BitmapFactory.Options().apply {
                inSampleSize = 1
                while (minOf(bounds.outWidth, bounds.outHeight) / inSampleSize > 2 * SHOWN) {
                    inSampleSize *= 2
                }
            }
            val bitmap = BitmapFactory.decodeFile(file.path, options)
                ?: throw Refusal(Refusal.Reason.NO_PICTURE, file.name)
            val upright = Bitmap.createBitmap(
                bitmap, 0, 0, bitmap.width, bitmap.height, readRotation(file), true,
            )
            return Picture(upright)
        }

        private fun readRotation(file: File): Matrix {
            val orientation = try {
                ExifInterface(file.path).getAttributeInt(
                    ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL,
                )
            } catch (_: IOException) { // not a JPEG
                ExifInterface.ORIENTATION_NORMAL
            }
            return Matrix().apply {
                when (orientation) {
                    ExifInterface.ORIENTATION_FLIP_HORIZONTAL -> postScale(-1f, 1f)
                    ExifInterface.ORIENTATION_ROTATE_180 -> postRotate(180f)
                    ExifInterface.ORIENTATION_FLIP_VERTICAL -> postScale(1f, -1f)
                    ExifInterface.ORIENTATION_TRANSPOSE -> {
                        postRotate(90f)
                        postScale(-1f, 1f)
                    }
                    ExifInterface.ORIENTATION_ROTATE_90 -> postRotate(90f)
                    ExifInterface.ORIENTATION_TRANSVERSE -> {
                        postRotate(-90f)
                        postScale(-1f, 1f)
                    }
                    ExifInterface.ORIENTATION_ROTATE_270 -> postRotate(-90f)
                }
            }
        }
    }
}
