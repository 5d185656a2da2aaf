package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.view.View
import android.widget.ImageView
import org.kdtflite.core.Classifier

/** Classifies the center of a picture from the gallery. */
class PicturesScreen(private val activity: Activity, private val app: DemoApplication) : Screen {
    override val root: View = activity.layoutInflater.inflate(R.layout.screen_pictures, null)
    private val session = app.session
    private val shown = root.findViewById<ImageView>(R.id.picture)
    private val panel = AnswerPanel(root.findViewById(R.id.picture_answer), app.sentences)
    private var answered: Classifier? = null

    init {
        root.findViewById<View>(R.id.choose).setOnClickListener {
            activity.pick(Request.PICTURE, "image/*")
        }
    }

    override fun onPicked(request: Int, data: Intent) {
        if (request != Request.PICTURE) return
        data.data?.let { uri -> classify { app.store.keepPicture(uri) } }
    }

    override fun refresh() {
        // Another model, or the picture from before a rotation or the death of the process.
        if (session.open?.classifier === answered) return
        answered = session.open?.classifier
        if (app.store.picture.exists()) classify {}
    }

    private fun classify(before: () -> Unit) {
        var picture: Picture? = null
        session.classify(
            { classifier ->
                before()
                Picture.read(app.store.picture).also { picture = it }.bytes(classifier.image)
            },
            { answer ->
                shown.setImageBitmap(picture?.bitmap)
                if (answer == null) panel.hide()
                else session.open?.let { panel.show(it.classifier.image, answer) }
            },
        )
    }
}
