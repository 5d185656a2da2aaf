package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.view.View
import android.widget.TextView

/** The file's metadata, and the assumptions where it has none. */
class ModelScreen(activity: Activity, private val app: DemoApplication) : Screen {
    override val root: View = activity.layoutInflater.inflate(R.layout.screen_model, null)
    private val lines = root.findViewById<TextView>(R.id.model_lines)
    private val bundled = root.findViewById<View>(R.id.bundled_model)

    init {
        root.findViewById<View>(R.id.open_model).setOnClickListener {
            activity.pick(Request.MODEL, "*/*")
        }
        bundled.setOnClickListener { app.session.openBundled() }
    }

    override fun onPicked(request: Int, data: Intent) {
        if (request == Request.MODEL) data.data?.let(app.session::open)
    }

    override fun refresh() {
        val open = app.session.open
        lines.text = open?.let { app.sentences.describeModel(it.classifier).joinToString("\n") }
        bundled.isEnabled = open?.isBundled == false
    }
}
