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
 * The current model and the work on it. It outlives activities. Only the main thread uses its
 * fields, and only [answers] uses the interpreter.
 */
class Session(private val store: Store, private val sentences: Sentences) {
    /** An open model. */
    class Open(val classifier: Classifier, val golden: GoldenVectors?, val isBundled: Boolean) {
        val model: ModelFile get() = classifier.model
    }

    private val main = Handler(Looper.getMainLooper())
    private val answers = Executors.newSingleThreadExecutor()
    private val long = Executors.newSingleThreadExecutor()

    /** Called on the main thread after any change of what the screens show. */
    var onChange: () -> Unit = {}

    var open: Open? = null
        private set

    /** One sentence for the user, or null. */
    val notice: String? get() = refused ?: failed

    // Why the last file and the last image failed, or null.
    private var refused: String? = null
    private var failed: String? = null

    // After the death of the process, the picker's answer may come before the model is open.
    private var pending: (() -> Unit)? = null

    val benchmark = Job()
    val selfTest = Job()

    init {
        load(keep = false) { store.readOpened() }
    }

    /** Opens another model; after a refusal the current one stays. */
    fun open(uri: Uri) = load(keep = true) { store.readModel(uri) }

    fun openBundled() = load(keep = true) { null }

    fun openGolden(uri: Uri) {
        val current = open
        if (current == null) {
            pending = { openGolden(uri) }
            return
        }
        answers.execute {
            val read = runCatching {
                val (golden, text) = store.readGolden(uri)
                // Refuses vectors of another model before they replace the current ones.
                SelfTest(current.model, golden, LiteRtEngine).run { _, _ -> false }
                store.keepGolden(text)
                golden
            }
            main.post {
                // Another model may have been opened in the meantime.
                if (open === current) {
                    read.onSuccess { golden ->
                        open = Open(current.classifier, golden, current.isBundled)
                    }
                    refused = read.exceptionOrNull()?.let(sentences::explain)
                }
                onChange()
            }
        }
    }

    /**
     * Classifies an image.
     *
     * @param bytes Makes its bytes, off the main thread.
     * @param show Called on the main thread with the answer, or with null if it failed.
     */
    fun classify(bytes: (Classifier) -> ByteArray, show: (Classifier.Answer?) -> Unit) {
        val current = open
        if (current == null) {
            pending = { classify(bytes, show) }
            return
        }
        answers.execute {
            val answer = runCatching { current.classifier.classify(bytes(current.classifier)) }
            main.post {
                // An answer from a model that is no longer current would be misleading.
                if (open?.classifier === current.classifier) {
                    failed = answer.exceptionOrNull()?.let(sentences::explain)
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
                ?.let { store.keepResult(BENCHMARK, model, sentences.describeBenchmark(model, it)) }
        }
    }

    fun runSelfTest() {
        val current = open ?: return
        val golden = current.golden ?: return
        selfTest.start { progress ->
            SelfTest(current.model, golden, LiteRtEngine).run(progress)
                ?.let { store.keepResult(SELF_TEST, current.model, sentences.describeSelfTest(it)) }
        }
    }

    /** The last measurement of the open model, or null. */
    val benchmarkText: String? get() = open?.let { store.readResult(BENCHMARK, it.model) }

    val selfTestText: String? get() = open?.let { store.readResult(SELF_TEST, it.model) }

    private fun load(keep: Boolean, read: () -> ModelFile?) {
        benchmark.cancel()
        selfTest.cancel()
        refused = null
        onChange()
        val isFirst = open == null
        answers.execute {
            val opened = runCatching { prepare(read(), keep) }
            // Only if no model is open: the copy from the last start may be damaged.
            val instead = if (opened.isFailure && isFirst) {
                runCatching { prepare(null, keep = false) }
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
                    open == null -> sentences.explain(reason)
                    else -> sentences.explainRefusal(reason)
                }
                if (open != null) pending?.also { pending = null }?.invoke()
                onChange()
            }
        }
    }

    private fun prepare(given: ModelFile?, keep: Boolean): Open {
        val classifier = Classifier.open(given ?: store.readBundled(), LiteRtEngine)
        if (keep) {
            runCatching { store.keep(given) }.onFailure {
                classifier.close()
                throw it
            }
        }
        // Damaged vectors are not a reason to refuse the model.
        val golden = runCatching {
            if (given == null) store.readBundledGolden() else store.readOpenedGolden()
        }
        return Open(classifier, golden.getOrNull(), isBundled = given == null)
    }

    /** Work that takes seconds, with progress; one job at a time. */
    inner class Job {
        var isRunning = false
            private set
        var done = 0
            private set
        var all = 0
            private set
        var problem: String? = null
            private set

        @Volatile private var isCanceled = false

        fun cancel() {
            isCanceled = true
        }

        /** @param work Returns null if [cancel] stopped it. */
        internal fun start(work: (progress: (Int, Int) -> Boolean) -> Unit?) {
            if (isRunning) return
            isRunning = true
            isCanceled = false
            done = 0
            problem = null
            onChange()
            long.execute {
                val finished = runCatching { work(::report) }
                main.post {
                    isRunning = false
                    val failed = finished.exceptionOrNull()
                    problem = when {
                        failed != null -> sentences.explain(failed)
                        finished.getOrNull() == null -> sentences.say(R.string.canceled)
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
            return !isCanceled
        }
    }

    private companion object {
        const val EVERY_MS = 100L
        const val BENCHMARK = "benchmark"
        const val SELF_TEST = "self-test"
    }
}
