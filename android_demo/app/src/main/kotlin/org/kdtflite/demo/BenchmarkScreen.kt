package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.view.View
import android.widget.TextView

/** Measures how fast the model runs on this device. */
class BenchmarkScreen(activity: Activity, private val app: DemoApplication) : Screen {
    override val root: View = activity.layoutInflater.inflate(R.layout.screen_benchmark, null)
    private val session = app.session
    private val job = JobView(
        root, session.benchmark, app.sentences, R.id.benchmark_run, R.id.benchmark_cancel,
        R.id.benchmark_progress, R.id.benchmark_state,
    ) { session.runBenchmark() }
    private val rows = root.findViewById<TextView>(R.id.benchmark_rows)
    private val share = root.findViewById<View>(R.id.benchmark_share)

    init {
        share.setOnClickListener {
            val send = Intent(Intent.ACTION_SEND).setType("text/plain")
                .putExtra(Intent.EXTRA_TEXT, session.benchmarkText)
            activity.startActivity(Intent.createChooser(send, null))
        }
    }

    override fun refresh() {
        job.refresh(possible = session.open != null)
        rows.text = session.benchmarkText
        share.isEnabled = session.benchmarkText != null
    }
}
