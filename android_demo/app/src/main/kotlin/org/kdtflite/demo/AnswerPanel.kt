package org.kdtflite.demo

import android.graphics.Bitmap
import android.graphics.drawable.BitmapDrawable
import android.view.View
import android.widget.ImageView
import android.widget.TextView
import org.kdtflite.core.Classifier
import org.kdtflite.core.ImageInput

/** Shows an answer: the model's input, the time, the three best classes. */
class AnswerPanel(private val root: View, private val sentences: Sentences) {
    private val seen = root.findViewById<ImageView>(R.id.seen)
    private val milliseconds = root.findViewById<TextView>(R.id.milliseconds)
    private val bars = root.findViewById<BarsView>(R.id.bars)

    init {
        hide()
    }

    fun hide() {
        root.visibility = View.INVISIBLE
    }

    fun show(image: ImageInput, answer: Classifier.Answer) {
        root.visibility = View.VISIBLE
        val bitmap = Bitmap.createBitmap(
            image.argb(answer.pixels), image.width, image.height, Bitmap.Config.ARGB_8888,
        )
        // Keep pixels square.
        seen.setImageDrawable(
            BitmapDrawable(root.resources, bitmap).apply { isFilterBitmap = false },
        )
        seen.contentDescription = sentences.describeInput(image)
        milliseconds.text = sentences.formatMilliseconds(answer.milliseconds)
        bars.show(answer.top)
    }
}
