package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.view.View
import android.widget.TextView

/** Tests whether this device gives the same answers as Python. */
class SelfTestScreen(activity: Activity, private val app: DemoApplication) : Screen {
    override val root: View = activity.layoutInflater.inflate(R.layout.screen_self_test, null)
    private val session = app.session
    private val job = JobView(
        root, session.selfTest, app.sentences, R.id.self_test_run, R.id.self_test_cancel,
        R.id.self_test_progress, R.id.self_test_state,
    ) { session.runSelfTest() }
    private val lines = root.findViewById<TextView>(R.id.self_test_lines)

    init {
        root.findViewById<View>(R.id.self_test_golden).setOnClickListener {
            activity.pick(Request.GOLDEN, "*/*")
        }
    }

    override fun onPicked(request: Int, data: Intent) {
        if (request == Request.GOLDEN) data.data?.let(session::openGolden)
    }

    override fun refresh() {
        val golden = session.open?.golden
        job.refresh(possible = golden != null)
        lines.text = when {
            session.open == null -> null
            golden == null -> app.sentences.say(R.string.self_test_no_golden)
            else -> session.selfTestText
        }
    }
}
