package org.kdtflite.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.io.encoding.Base64
import kotlin.io.encoding.ExperimentalEncodingApi
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/**
 * The answers of a file on the machine that made it, written by `kdtflite golden`. The format is
 * described in docs/android.md.
 *
 * @property file The file's name on that machine.
 * @property sha256 The file's digest.
 * @property xnnpackSteps Largest difference between XNNPACK's outputs and those of the built-in
 *     kernels, in codes; null if every output is float.
 * @property xnnpackDifference The same in real values.
 */
class GoldenVectors private constructor(
    val file: String,
    val sha256: String,
    val xnnpackSteps: Int?,
    val xnnpackDifference: Float,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val samples: List<Sample>,
    val quantizers: List<QuantizerCases>,
) {
    /** One sample; each list has one entry for each input or output. */
    class Sample(val inputs: List<Input>, val outputs: List<Output>)

    /** @property quantized The input as stored for the file, with all bytes of the tensor. */
    class Input(val real: FloatArray, val quantized: ByteArray)

    /**
     * @property quantized The output of the built-in kernels.
     * @property xnnpack The output of XNNPACK.
     */
    class Output(val quantized: ByteArray, val dequantized: FloatArray, val xnnpack: ByteArray)

    /** Values that quantizers most often get wrong, with their codes. */
    class QuantizerCases(val quantizer: Quantizer, val values: FloatArray, val codes: IntArray)

    companion object {
        /** @throws Refusal NO_GOLDEN if the text is damaged or something else. */
        fun parse(text: String): GoldenVectors = try {
            val json = JSONObject(text)
            val format = json.optString("format")
            if (format != FORMAT) refuse("expected format $FORMAT, received: \"$format\".")
            val inputs = json.getJSONArray("inputs").objects().map(::spec)
            val outputs = json.getJSONArray("outputs").objects().map(::spec)
            val kernels = json.getJSONObject("kernels")
            GoldenVectors(
                file = json.getJSONObject("model").getString("file"),
                sha256 = json.getJSONObject("model").getString("sha256"),
                xnnpackSteps =
                    if (kernels.isNull("xnnpack_steps")) null else kernels.getInt("xnnpack_steps"),
                xnnpackDifference = kernels.getDouble("xnnpack_difference").toFloat(),
                inputs = inputs,
                outputs = outputs,
                samples = json.getJSONArray("samples").objects().map { sample ->
                    Sample(
                        sample.getJSONArray("inputs").objects(inputs.size).mapIndexed { i, entry ->
                            Input(
                                entry.floats("float", inputs[i].elements),
                                entry.bytes("quantized", inputs[i]),
                            )
                        },
                        sample.getJSONArray("outputs").objects(outputs.size)
                            .mapIndexed { i, entry ->
                                Output(
                                    entry.bytes("quantized", outputs[i]),
                                    entry.floats("dequantized", outputs[i].elements),
                                    entry.bytes("xnnpack", outputs[i]),
                                )
                            },
                    )
                },
                quantizers = json.getJSONArray("quantizer").objects().map(::cases),
            )
        } catch (damaged: JSONException) {
            refuse(damaged.message ?: "not JSON.")
        } catch (damaged: IllegalArgumentException) { // base64, dtype, a scale below 0
            refuse(damaged.message ?: "$damaged")
        }

        const val FORMAT = "kdtflite-golden-1"

        private fun spec(json: JSONObject) = TensorSpec(
            json.getString("name"),
            json.getJSONArray("shape").let { shape -> List(shape.length()) { shape.getInt(it) } },
            dtype(json.getString("dtype")),
            if (json.isNull("scale")) null else json.getDouble("scale").toFloat(),
            if (json.isNull("zero_point")) null else json.getInt("zero_point"),
        )

        private fun cases(json: JSONObject): QuantizerCases {
            val dtype = dtype(json.getString("dtype"))
            val count = json.getInt("count")
            val codes = little(json.decode("codes", count * dtype.bytes))
            return QuantizerCases(
                Quantizer(json.getDouble("scale").toFloat(), json.getInt("zero_point"), dtype),
                json.floats("values", count),
                IntArray(count) { dtype.code(codes, it) },
            )
        }

        private fun dtype(name: String): DType =
            DType.fromName(name) ?: throw IllegalArgumentException("unknown dtype \"$name\".")

        private fun JSONObject.floats(key: String, count: Int): FloatArray {
            val buffer = little(decode(key, 4 * count))
            return FloatArray(count) { buffer.getFloat(4 * it) }
        }

        private fun JSONObject.bytes(key: String, spec: TensorSpec): ByteArray =
            decode(key, spec.elements * spec.dtype.bytes)

        // java.util.Base64 needs API 26.
        @OptIn(ExperimentalEncodingApi::class)
        private fun JSONObject.decode(key: String, size: Int): ByteArray {
            val bytes = Base64.Default.decode(getString(key))
            if (bytes.size != size) {
                refuse("expected $size bytes in \"$key\", received: ${bytes.size}.")
            }
            return bytes
        }

        private fun little(bytes: ByteArray) = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)

        private fun JSONArray.objects(count: Int = length()): List<JSONObject> {
            if (length() != count) refuse("expected $count entries, received: ${length()}.")
            return List(length()) { getJSONObject(it) }
        }

        private fun refuse(what: String): Nothing = throw Refusal(Refusal.Reason.NO_GOLDEN, what)
    }
}
