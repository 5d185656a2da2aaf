package org.kdtflite.demo

import android.content.Context
import android.os.Build
import org.kdtflite.core.Benchmark
import org.kdtflite.core.Classifier
import org.kdtflite.core.ImageInput
import org.kdtflite.core.Kernels
import org.kdtflite.core.ModelFile
import org.kdtflite.core.Ranked
import org.kdtflite.core.Refusal
import org.kdtflite.core.SelfTest

/** All texts of the app that are longer than a word, from its resources. */
class Sentences(private val context: Context) {
    fun explain(failed: Throwable): String {
        if (failed !is Refusal) return say(R.string.refused_unknown, "${failed.message ?: failed}")
        val sentence = when (failed.reason) {
            Refusal.Reason.NOT_READABLE -> R.string.refused_not_readable
            Refusal.Reason.NO_MODEL -> R.string.refused_no_model
            Refusal.Reason.TOO_LARGE -> R.string.refused_too_large
            Refusal.Reason.NOT_RUNNABLE -> R.string.refused_not_runnable
            Refusal.Reason.DTYPE -> R.string.refused_dtype
            Refusal.Reason.INPUTS -> R.string.refused_inputs
            Refusal.Reason.SHAPE -> R.string.refused_shape
            Refusal.Reason.OUTPUT -> R.string.refused_output
            Refusal.Reason.NO_PICTURE -> R.string.refused_no_picture
            Refusal.Reason.NO_GOLDEN -> R.string.refused_no_golden
            Refusal.Reason.OTHER_MODEL -> R.string.refused_other_model
        }
        return say(sentence, *failed.details)
    }

    fun explainRefusal(failed: Throwable): String = say(R.string.current_stays, explain(failed))

    /** Describes a file in several lines. */
    fun describeModel(classifier: Classifier): List<String> {
        val (model, metadata, image) =
            Triple(classifier.model, classifier.metadata, classifier.image)
        return buildList {
            add(say(R.string.model_file, model.name, model.size))
            add(say(R.string.model_digest, model.sha256))
            add(say(R.string.model_input, "${image.spec}"))
            add(say(R.string.model_output, "${classifier.output}"))
            add(describeNormalization(image))
            metadata.problem?.let { add(say(R.string.model_damaged_metadata, it)) }
            if (!metadata.isPresent && metadata.problem == null) {
                add(say(R.string.model_no_metadata))
            }
            add(
                if (classifier.labels.isEmpty()) say(R.string.model_no_labels)
                else say(R.string.model_labels, classifier.labels.joinToString(", "))
            )
            for ((title, text) in listOf(
                R.string.model_description to metadata.description,
                R.string.model_author to metadata.author,
                R.string.model_license to metadata.license,
            )) if (text.isNotEmpty()) add(say(R.string.model_detail, say(title), text))
            for ((key, text) in metadata.details) add(say(R.string.model_detail, key, text))
        }
    }

    private fun describeNormalization(image: ImageInput): String = when (image.assumption) {
        null -> say(R.string.model_normalization, format(image.mean), format(image.std))
        ImageInput.Assumption.ZERO_TO_ONE -> say(R.string.model_assumed_unit)
        ImageInput.Assumption.MINUS_ONE_TO_ONE -> say(R.string.model_assumed_signed)
        ImageInput.Assumption.PIXELS -> say(R.string.model_assumed_pixels)
    }

    private fun format(values: List<Float>): String =
        if (values.distinct().size == 1) "${values[0]}" else "$values"

    fun formatLabel(ranked: Ranked): String =
        if (ranked.tied) say(R.string.answer_tied, ranked.label) else ranked.label

    fun formatScore(ranked: Ranked): String = say(R.string.answer_score, ranked.score)

    /** Describes the best classes for TalkBack. */
    fun describeAnswer(top: List<Ranked>): String = buildList {
        for (one in top) add(say(R.string.answer_line, one.label, formatScore(one), 100 * one.share))
        if (top.any { it.tied }) add(say(R.string.tied))
    }.joinToString("; ")

    fun formatMilliseconds(value: Double): String = say(R.string.milliseconds, value)

    fun describeInput(image: ImageInput): String = say(R.string.seen, image.width, image.height)

    fun describeProgress(done: Int, all: Int): String = say(R.string.progress, done, all)

    fun describeBenchmark(model: ModelFile, rows: List<Benchmark.Row>): String = Benchmark.format(
        listOf(
            say(R.string.benchmark_header, model.name, model.size),
            say(
                R.string.benchmark_device, Build.MANUFACTURER, Build.MODEL, Build.VERSION.RELEASE,
            ),
            say(R.string.benchmark_memory),
        ),
        rows,
    )

    fun describeSelfTest(report: SelfTest.Report): String = buildList {
        add(say(if (report.passes) R.string.self_test_passes else R.string.self_test_fails))
        for (outcome in report.outcomes) add(describeOutcome(report, outcome))
        val values = report.quantizerValues
        add(say(R.string.self_test_quantizer, values - report.quantizerWrong, values))
        val samples = report.samples
        add(say(R.string.self_test_inputs, samples - report.inputsWrong, samples))
        add(say(R.string.self_test_outputs, samples - report.dequantizedWrong, samples))
    }.joinToString("\n")

    private fun describeOutcome(report: SelfTest.Report, outcome: SelfTest.Outcome): String {
        val kernels = say(
            if (outcome.kernels == Kernels.XNNPACK) R.string.kernels_xnnpack
            else R.string.kernels_built_in
        )
        val first = outcome.firstDifferent
        val steps = outcome.steps
        return when {
            first == null ->
                say(R.string.self_test_equal, kernels, outcome.equal, report.samples)
            steps != null -> say(
                R.string.self_test_steps, kernels, outcome.equal, report.samples, first,
                steps, report.stepsAllowed, outcome.sameClass,
            )
            else -> say(
                R.string.self_test_difference, kernels, outcome.equal, report.samples, first,
                outcome.difference, report.differenceAllowed, outcome.sameClass,
            )
        }
    }

    fun say(sentence: Int, vararg details: Any): String = context.getString(sentence, *details)
}
