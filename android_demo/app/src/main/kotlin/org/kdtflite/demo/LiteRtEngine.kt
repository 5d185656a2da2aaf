package org.kdtflite.demo

import java.nio.ByteBuffer
import org.kdtflite.core.DType
import org.kdtflite.core.Engine
import org.kdtflite.core.Kernels
import org.kdtflite.core.ModelFile
import org.kdtflite.core.Refusal
import org.kdtflite.core.TensorSpec
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor

/** A file in LiteRT's interpreter. Uses no Android class, so that a JVM can run it. */
class LiteRtEngine private constructor(
    // The interpreter reads the weights in place: the buffer must live as long as it does.
    private val content: ByteBuffer,
    private val interpreter: Interpreter,
    override val inputs: List<TensorSpec>,
    override val outputs: List<TensorSpec>,
) : Engine {
    override fun run(inputs: List<ByteBuffer>, outputs: List<ByteBuffer>) {
        // The interpreter reads from the position on, and would silently read zeros.
        (inputs + outputs).forEach { it.rewind() }
        interpreter.runForMultipleInputsOutputs(
            inputs.toTypedArray(), outputs.indices.associateWith { outputs[it] },
        )
        outputs.forEach { it.rewind() }
    }

    override fun close() = interpreter.close()

    companion object : Engine.Factory {
        override fun open(model: ModelFile, threads: Int, kernels: Kernels): Engine {
            val options = Interpreter.Options()
            options.setNumThreads(threads)
            options.setUseXNNPACK(kernels == Kernels.XNNPACK)
            val content = model.buffer()
            var interpreter: Interpreter? = null
            try {
                interpreter = Interpreter(content, options).apply { allocateTensors() }
                return LiteRtEngine(
                    content,
                    interpreter,
                    List(interpreter.inputTensorCount) {
                        spec(model, interpreter.getInputTensor(it))
                    },
                    List(interpreter.outputTensorCount) {
                        spec(model, interpreter.getOutputTensor(it))
                    },
                )
            } catch (refused: Refusal) {
                interpreter?.close()
                throw refused
            } catch (failed: RuntimeException) {
                interpreter?.close()
                throw Refusal(Refusal.Reason.NOT_RUNNABLE, model.name, sentence(failed))
            }
        }

        private fun spec(model: ModelFile, tensor: Tensor): TensorSpec {
            val type = tensor.dataType().name
            val dtype = DType.fromName(type)
                ?: throw Refusal(Refusal.Reason.DTYPE, model.name, tensor.name(), type.lowercase())
            // A scale of 0 means that the tensor has no scale.
            val quantization = tensor.quantizationParams()
            val scale = quantization.scale.takeIf { it > 0 && dtype.isInteger }
            return TensorSpec(
                tensor.name(), tensor.shape().asList(), dtype,
                scale, quantization.zeroPoint.takeIf { scale != null },
            )
        }

        private fun sentence(failed: RuntimeException): String =
            failed.message.orEmpty().lines().map { it.trim() }.filter { it.isNotEmpty() }
                .joinToString(" ").ifEmpty { failed.javaClass.simpleName }
    }
}
