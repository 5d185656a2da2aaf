package org.kdtflite.core

import java.io.Closeable

/**
 * A file that takes an image and gives one score per class.
 *
 * @property metadata The metadata in the file.
 * @property image How pixels become its input.
 */
class Classifier private constructor(
    val model: ModelFile,
    val metadata: ModelMetadata,
    val image: ImageInput,
    val output: TensorSpec,
    private val engine: Engine,
) : Closeable {
    private val input = image.spec.buffer()
    private val outputs = engine.outputs.map { it.buffer() }

    /** Name of each class; empty if the file has no labels. */
    val labels: List<String> get() = metadata.outputs.firstOrNull()?.labels.orEmpty()

    /**
     * @property top The best classes, best first.
     * @property pixels The input of the model, before quantization.
     * @property milliseconds How long the interpreter took.
     */
    class Answer(val top: List<Ranked>, val pixels: ByteArray, val milliseconds: Double)

    /** Classifies an image of [ImageInput.size] bytes. One thread at a time. */
    fun classify(pixels: ByteArray, k: Int = 3): Answer {
        image.encode(pixels, input)
        val start = System.nanoTime()
        engine.run(listOf(input), outputs)
        val milliseconds = (System.nanoTime() - start) / 1e6
        return Answer(Scores.top(output.decode(outputs[0]), k, labels), pixels, milliseconds)
    }

    /** Turns a drawing into an image like MNIST's, with as many channels as the file expects. */
    fun preprocessDrawing(gray: ByteArray, height: Int, width: Int): ByteArray {
        val size = minOf(image.height, image.width)
        // scikit-learn's digits fill their 8 × 8 pixels; MNIST's have a margin.
        val box = if (metadata.details["data"] == "digits") size else Drawing.mnistBox(size)
        val square = Drawing.toImage(gray, height, width, size, box)
        val top = (image.height - size) / 2
        val left = (image.width - size) / 2
        val bytes = ByteArray(image.size)
        for (i in square.indices) {
            val start = ((top + i / size) * image.width + left + i % size) * image.channels
            bytes.fill(square[i], start, start + image.channels)
        }
        return bytes
    }

    override fun close() = engine.close()

    companion object {
        /** @throws Refusal The file cannot be run, or does not classify images. */
        fun open(
            model: ModelFile,
            factory: Engine.Factory,
            threads: Int = 1,
            kernels: Kernels = Kernels.XNNPACK,
        ): Classifier {
            val engine = factory.open(model, threads, kernels)
            try {
                if (engine.inputs.size != 1) {
                    throw Refusal(Refusal.Reason.INPUTS, model.name, "${engine.inputs.size}")
                }
                val output = engine.outputs.first()
                if (output.shape.size != 2 || output.shape[0] != 1 || output.elements < 1) {
                    val shape = output.shape.joinToString(" × ")
                    throw Refusal(Refusal.Reason.OUTPUT, model.name, shape)
                }
                val metadata = ModelMetadata.read(model.buffer())
                val image =
                    ImageInput.of(engine.inputs[0], model.name, metadata.inputs.firstOrNull())
                return Classifier(model, metadata, image, output, engine)
            } catch (refused: Throwable) {
                engine.close()
                throw refused
            }
        }
    }
}
