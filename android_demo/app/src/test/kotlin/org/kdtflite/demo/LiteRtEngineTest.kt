package org.kdtflite.demo

import java.io.File
import java.lang.reflect.Field
import java.util.Locale
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import org.kdtflite.core.Benchmark
import org.kdtflite.core.Classifier
import org.kdtflite.core.Engine
import org.kdtflite.core.GoldenVectors
import org.kdtflite.core.Kernels
import org.kdtflite.core.ModelFile
import org.kdtflite.core.Refusal
import org.kdtflite.core.SelfTest
import org.tensorflow.lite.Interpreter

/** The app's engine over the native library that ships in the APK, built for x86_64. */
class LiteRtEngineTest {
    private val folder = File(System.getProperty("kdtflite.cases"))
    private val models = folder.listFiles { file -> file.extension == "tflite" }!!.sorted()
    private val goldens = models.filter { File(folder, "${it.nameWithoutExtension}.json").exists() }

    private fun read(file: File) = file.inputStream().use { ModelFile.read(file.name, it) }

    private fun golden(file: File) =
        GoldenVectors.parse(File(folder, "${file.nameWithoutExtension}.json").readText())

    @TestFactory
    fun `the phone's runtime accepts every file and gives Python's answers`(): List<DynamicTest> =
        goldens.map { file ->
            dynamicTest(file.name) {
                val report = SelfTest(read(file), golden(file), LiteRtEngine).run()!!
                File(folder, "${file.nameWithoutExtension}.row.txt").writeText(row(report))
                assertEquals(0, report.quantizerWrong)
                assertEquals(0, report.inputsWrong)
                assertEquals(0, report.dequantizedWrong)
                assertTrue(report.passes, "${report.outcomes}")
                val xnnpack = report.outcomes.single { it.kernels == Kernels.XNNPACK }
                // LiteRT 2.3's XNNPACK has kernels for int4 weights; here the built-in ones run them.
                if (xnnpack.steps != null && file.nameWithoutExtension != "int8x4") {
                    assertEquals(report.samples, xnnpack.equal)
                }
            }
        }

    /** Formats one row of the table in README. */
    private fun row(report: SelfTest.Report): String = report.outcomes.joinToString("") {
        "%s\t%d of %d\t%d\t%s\n".format(
            Locale.ROOT, it.kernels, it.equal, report.samples, it.sameClass,
            it.steps?.let { steps -> "$steps steps" } ?: "%.3g".format(Locale.ROOT, it.difference),
        )
    }

    @Test
    fun `XNNPACK runs the graph if and only if it is requested`() {
        val model = read(goldens.first())
        fun operators(kernels: Kernels): Int =
            LiteRtEngine.open(model, 1, kernels).use { it.operators() }
        assertTrue(operators(Kernels.XNNPACK) < operators(Kernels.BUILT_IN))
    }

    /** Number of operators in the plan; a delegate's part counts as one. */
    private fun Engine.operators(): Int {
        val interpreter = javaClass.getDeclaredField("interpreter").open().get(this)
        val wrapper = Interpreter::class.java.superclass.getDeclaredField("wrapper").open().get(interpreter)
        return wrapper.javaClass.superclass.getDeclaredMethod("getExecutionPlanLength")
            .apply { isAccessible = true }
            .invoke(wrapper) as Int
    }

    private fun Field.open() = apply { isAccessible = true }

    @Test
    fun `there are files to run`() {
        assertTrue(goldens.isNotEmpty(), "Expected NAME.tflite with NAME.json in $folder.")
    }

    @TestFactory
    fun `a file that the app cannot use is refused for its reason`(): List<DynamicTest> =
        models.filter { ".refused" in it.name }.map { file ->
            dynamicTest(file.name) {
                val refused = assertThrows<Refusal> { Classifier.open(read(file), LiteRtEngine) }
                assertEquals(file.name.substringBefore('.'), refused.reason.name.lowercase())
                assertTrue(file.name in refused.message!!, refused.message)
            }
        }

    @TestFactory
    fun `a truncated file is refused`(): List<DynamicTest> =
        listOf(8, 100, 1000, 2000).map { size ->
            dynamicTest("$size bytes") {
                val bytes = goldens.first().readBytes().copyOf(size)
                val model = ModelFile.read("cut.tflite", bytes.inputStream())
                val refused = assertThrows<Refusal> { Classifier.open(model, LiteRtEngine) }
                assertEquals(Refusal.Reason.NOT_RUNNABLE, refused.reason)
            }
        }

    @Test
    fun `a model keeps working after another is refused`() {
        val file = goldens.first { usable(it) }
        Classifier.open(read(file), LiteRtEngine).use { classifier ->
            val pixels = ByteArray(classifier.image.size) { (it * 7).toByte() }
            val before = classifier.classify(pixels)
            val cut = ModelFile.read("cut", file.readBytes().copyOf(500).inputStream())
            assertThrows<Refusal> { Classifier.open(cut, LiteRtEngine) }
            assertEquals(before.top, classifier.classify(pixels).top)
        }
    }

    @Test
    fun `the answer to an image is the answer to its codes`() {
        for (file in goldens.filter { usable(it) }) {
            val model = read(file)
            Classifier.open(model, LiteRtEngine).use { classifier ->
                val pixels = ByteArray(classifier.image.size) { (it * 31 + 5).toByte() }
                val answer = classifier.classify(pixels, k = 1).top.single()
                LiteRtEngine.open(model, 1, Kernels.XNNPACK).use { engine ->
                    val input = engine.inputs[0].buffer()
                    classifier.image.encode(pixels, input)
                    input.position(input.capacity()) // like a buffer that was just filled
                    val output = engine.outputs[0].buffer()
                    engine.run(listOf(input), listOf(output))
                    val scores = engine.outputs[0].decode(output)
                    assertEquals(scores.max(), answer.score)
                    assertEquals(scores.indexOfFirst { it == scores.max() }, answer.index)
                }
                val labels = classifier.labels
                if (labels.isNotEmpty()) assertEquals(labels[answer.index], answer.label)
            }
        }
    }

    @Test
    fun `the benchmark runs with each set of kernels and number of threads`() {
        val rows = Benchmark(read(goldens.first()), LiteRtEngine).run(invokes = 3, warmUp = 1)!!
        assertEquals(6, rows.size)
        assertTrue(rows.all { it.latency.p50 > 0 })
    }

    private fun usable(file: File): Boolean =
        golden(file).inputs.single().shape.let { it.size == 4 && it[3] in setOf(1, 3) }
}
