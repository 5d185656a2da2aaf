package org.kdtflite.demo

import android.view.View
import android.widget.ProgressBar
import android.widget.TextView

/** The buttons and the progress of a job. */
class JobView(
    root: View,
    private val job: Session.Job,
    private val sentences: Sentences,
    run: Int,
    cancel: Int,
    progress: Int,
    state: Int,
    start: () -> Unit,
) {
    private val run = root.findViewById<View>(run)
    private val cancel = root.findViewById<View>(cancel)
    private val progress = root.findViewById<ProgressBar>(progress)
    private val state = root.findViewById<TextView>(state)

    init {
        this.run.setOnClickListener { start() }
        this.cancel.setOnClickListener { job.cancel() }
    }

    /** @param possible Whether there is something to run. */
    fun refresh(possible: Boolean) {
        run.isEnabled = possible && !job.isRunning
        cancel.isEnabled = job.isRunning
        progress.visibility = if (job.isRunning) View.VISIBLE else View.INVISIBLE
        progress.max = job.all
        progress.progress = job.done
        // Only the bar shows the steps: TalkBack would read each of them aloud.
        state.text = if (job.isRunning) null else job.problem
        progress.contentDescription = sentences.describeProgress(job.done, job.all)
    }
}
