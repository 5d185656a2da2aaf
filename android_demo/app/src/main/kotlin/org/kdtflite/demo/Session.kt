package org.kdtflite.demo

import android.net.Uri
import android.os.Debug
import android.os.Handler
import android.os.Looper
import android.os.SystemClock
import java.util.concurrent.Executors
import org.kdtflite.core.Benchmark
import org.kdtflite.core.Classifier
import org.kdtflite.core.GoldenVectors
import org.kdtflite.core.ModelFile
import org.kdtflite.core.SelfTest

/**
 * The model in use and the work on it. Outlives activities; its fields are the main thread's, the
 * interpreter is [answers]' alone.
 */
class Session(private val store: Store, private val sentences: Sentences) {
    /** A model that is open. */
    class Open(val classifier: Classifier, val golden: GoldenVectors?, val isBundled: Boolean) {
        val model: ModelFile get() = classifier.model
    }

    private val main = Handler(Looper.getMainLooper())
    private val answers = Executors.newSingleThreadExecutor()
    private val long = Executors.newSingleThreadExecutor()

    /** Called on the main thread after whatever is shown has changed. */
    var onChange: () -> Unit = {}

    var open: Open? = null
        private set

    /** One sentence for the user, or null. */
    val notice: String? get() = refused ?: failed

    // What became of the last file, and of the last image.
    private var refused: String? = null
    private var failed: String? = null

    // After the process' death the picker's answer may come before the model is open.
    private var waiting: (() -> Unit)? = null

    val benchmark = Job()
    val selfTest = Job()

    init {
        load(keep = false) { store.opened() }
    }

    /** Opens another model; what is refused leaves the former. */
    fun open(uri: Uri) = load(keep = true) { store.model(uri) }

    fun openBundled() = load(keep = true) { null }

    fun openGolden(uri: Uri) {
        val current = open
        if (current == null) {
            waiting = { openGolden(uri) }
            return
        }
        answers.execute {
            val read = runCatching {
                val (golden, text) = store.golden(uri)
                // Refuses vectors of another model before they replace those that are there.
                SelfTest(current.model, golden, LiteRtEngine).run { _, _ -> false }
                store.keepGolden(text)
                golden
            }
            main.post {
                // Another model may have been opened meanwhile.
                if (open === current) {
                    read.onSuccess { golden ->
                        open = Open(current.classifier, golden, current.isBundled)
                    }
                    refused = read.exceptionOrNull()?.let(sentences::refused)
                }
                onChange()
            }
        }
    }

    /**
     * Answers an image.
     *
     * @param bytes Makes its bytes, off the main thread.
     * @param show Called on the main thread with the answer, or with null where it failed.
     */
    fun classify(bytes: (Classifier) -> ByteArray, show: (Classifier.Answer?) -> Unit) {
        val current = open
        if (current == null) {
            waiting = { classify(bytes, show) }
            return
        }
        answers.execute {
            val answer = runCatching { current.classifier.classify(bytes(current.classifier)) }
            main.post {
                // An answer of a model that is no longer shown would be misleading.
                if (open?.classifier === current.classifier) {
                    failed = answer.exceptionOrNull()?.let(sentences::refused)
                    show(answer.getOrNull())
                }
                onChange()
            }
        }
    }

    fun runBenchmark() {
        val model = open?.model ?: return
        benchmark.start { progress ->
            Benchmark(model, LiteRtEngine, Debug::getNativeHeapAllocatedSize)
                .run(progress = progress)
                ?.let { store.keepResult(BENCHMARK, model, sentences.benchmark(model, it)) }
        }
    }

    fun runSelfTest() {
        val current = open ?: return
        val golden = current.golden ?: return
        selfTest.start { progress ->
            SelfTest(current.model, golden, LiteRtEngine).run(progress)
                ?.let { store.keepResult(SELF_TEST, current.model, sentences.selfTest(it)) }
        }
    }

    /** What was measured of the open model, or null. */
    val benchmarkText: String? get() = open?.let { store.result(BENCHMARK, it.model) }

    val selfTestText: String? get() = open?.let { store.result(SELF_TEST, it.model) }

    private fun load(keep: Boolean, read: () -> ModelFile?) {
        benchmark.cancel()
        selfTest.cancel()
        refused = null
        onChange()
        val isFirst = open == null
        answers.execute {
            val opened = runCatching { opened(read(), keep) }
            // Only if nothing goes on: the copy of the last start may be damaged.
            val instead = if (opened.isFailure && isFirst) {
                runCatching { opened(null, keep = false) }
            } else null
            main.post {
                val next = opened.getOrNull() ?: instead?.getOrNull()
                if (next != null) {
                    val former = open
                    open = next
                    former?.let { answers.execute { it.classifier.close() } }
                }
                val reason = opened.exceptionOrNull()
                failed = null
                refused = when {
                    reason == null -> null
                    open == null -> sentences.refused(reason)
                    else -> sentences.formerGoesOn(reason)
                }
                if (open != null) waiting?.also { waiting = null }?.invoke()
                onChange()
            }
        }
    }

    private fun opened(given: ModelFile?, keep: Boolean): Open {
        val classifier = Classifier.open(given ?: store.bundled(), LiteRtEngine)
        if (keep) {
            runCatching { store.keep(given) }.onFailure {
                classifier.close()
                throw it
            }
        }
        // Damaged vectors are no reason to refuse the model.
        val golden = runCatching {
            if (given == null) store.bundledGolden() else store.openedGolden()
        }
        return Open(classifier, golden.getOrNull(), isBundled = given == null)
    }

    /** Work of seconds with progress, one at a time. */
    inner class Job {
        var isRunning = false
            private set
        var done = 0
            private set
        var all = 0
            private set
        var problem: String? = null
            private set

        @Volatile private var isCancelled = false

        fun cancel() {
            isCancelled = true
        }

        /** @param work Gives null where [cancel] ended it. */
        internal fun start(work: (progress: (Int, Int) -> Boolean) -> Unit?) {
            if (isRunning) return
            isRunning = true
            isCancelled = false
            done = 0
            problem = null
            onChange()
            long.execute {
                val finished = runCatching { work(::report) }
                main.post {
                    isRunning = false
                    val failed = finished.exceptionOrNull()
                    problem = when {
                        failed != null -> sentences.refused(failed)
                        finished.getOrNull() == null -> sentences.say(R.string.cancelled)
                        else -> null
                    }
                    onChange()
                }
            }
        }

        private var last = 0L

        private fun report(done: Int, all: Int): Boolean {
            val now = SystemClock.uptimeMillis()
            if (now - last > EVERY_MS || done == all) {
                last = now
                main.post {
                    this.done = done
                    this.all = all
                    onChange()
                }
            }
            return !isCancelled
        }
    }

    private companion object {
        const val EVERY_MS = 100L
        const val BENCHMARK = "benchmark"
        const val SELF_TEST = "self-test"
    }
}
