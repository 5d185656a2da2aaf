package org.kdtflite.demo

import android.app.Activity
import android.view.View
import org.kdtflite.core.Classifier

/** A canvas; classifies the drawing when the finger lifts. */
class DrawScreen(activity: Activity, app: DemoApplication) : Screen {
    override val root: View = activity.layoutInflater.inflate(R.layout.screen_draw, null)
    private val session = app.session
    private val canvas = root.findViewById<DrawingView>(R.id.canvas)
    private val panel = AnswerPanel(root.findViewById(R.id.draw_answer), app.sentences)
    private var answered: Classifier? = null

    init {
        canvas.onDrawn = ::classify
        root.findViewById<View>(R.id.clear).setOnClickListener { canvas.clear() }
        root.findViewById<View>(R.id.undo).setOnClickListener { canvas.undo() }
    }

    override fun refresh() {
        // Another model, or a drawing restored after a rotation.
        if (session.open?.classifier !== answered) classify()
    }

    private fun classify() {
        answered = session.open?.classifier
        if (canvas.isEmpty) return panel.hide()
        val gray = canvas.gray()
        session.classify(
            { it.preprocessDrawing(gray, DrawingView.SIDE, DrawingView.SIDE) },
            { answer ->
                // The canvas may have been cleared in the meantime.
                if (answer == null || canvas.isEmpty) panel.hide()
                else session.open?.let { panel.show(it.classifier.image, answer) }
            },
        )
    }
}
