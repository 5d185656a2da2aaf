package org.kdtflite.core

import java.nio.ByteBuffer
import org.json.JSONException
import org.json.JSONObject
import org.tensorflow.lite.support.metadata.MetadataExtractor
import org.tensorflow.lite.support.metadata.schema.NormalizationOptions
import org.tensorflow.lite.support.metadata.schema.ProcessUnitOptions
import org.tensorflow.lite.support.metadata.schema.TensorMetadata

/**
 * What a file says of itself, in TensorFlow Lite's metadata format.
 *
 * @property inputs What is said of each input, in the file's order.
 * @property outputs What is said of each output, in the file's order.
 * @property details What the standard has no field for: target, recipe, data.
 * @property problem Why the metadata could not be read, or null. The model is not concerned.
 */
data class ModelMetadata(
    val name: String = "",
    val description: String = "",
    val author: String = "",
    val license: String = "",
    val inputs: List<Tensor> = emptyList(),
    val outputs: List<Tensor> = emptyList(),
    val details: Map<String, String> = emptyMap(),
    val problem: String? = null,
) {
    /** Whether the file says anything. */
    val isPresent: Boolean get() = this != NONE && problem == null

    /**
     * @property mean Subtracted from an input before it is divided by [std]: one value, or one a
     *     channel. Empty where nothing is said.
     * @property labels Name of each class of an output; empty where nothing is said.
     */
    data class Tensor(
        val name: String = "",
        val mean: List<Float> = emptyList(),
        val std: List<Float> = emptyList(),
        val labels: List<String> = emptyList(),
    )

    companion object {
        /** Of a file that says nothing. */
        val NONE = ModelMetadata()

        /** Reads them; whatever is damaged gives [NONE] with a [problem], never an exception. */
        fun read(model: ByteBuffer): ModelMetadata = try {
            val extractor = MetadataExtractor(model)
            if (extractor.hasMetadata()) read(extractor) else NONE
        } catch (damaged: Exception) {
            // The reader has no type of its own: index, state and buffer errors all come from it.
            NONE.copy(problem = damaged.message ?: damaged.javaClass.simpleName)
        }

        private fun read(extractor: MetadataExtractor): ModelMetadata {
            val model = extractor.modelMetadata
            return ModelMetadata(
                name = model.name().orEmpty(),
                description = model.description().orEmpty(),
                author = model.author().orEmpty(),
                license = model.license().orEmpty(),
                inputs = List(extractor.inputTensorCount) {
                    tensor(extractor, extractor.getInputTensorMetadata(it))
                },
                outputs = List(extractor.outputTensorCount) {
                    tensor(extractor, extractor.getOutputTensorMetadata(it))
                },
                details = details(extractor),
            )
        }

        private fun tensor(extractor: MetadataExtractor, said: TensorMetadata?): Tensor {
            if (said == null) return Tensor()
            val normalisation = (0 until said.processUnitsLength()).map { said.processUnits(it) }
                .firstOrNull { it.optionsType() == ProcessUnitOptions.NormalizationOptions }
                ?.let { it.options(NormalizationOptions()) as NormalizationOptions? }
            val files = extractor.files()
            val labels = (0 until said.associatedFilesLength())
                .mapNotNull { said.associatedFiles(it).name() }
                .firstOrNull { it in files }
            return Tensor(
                name = said.name().orEmpty(),
                mean = List(normalisation?.meanLength() ?: 0) { normalisation!!.mean(it) },
                std = List(normalisation?.stdLength() ?: 0) { normalisation!!.std(it) },
                labels = labels?.let { extractor.text(it).trimEnd('\n').lines() }.orEmpty(),
            )
        }

        private fun details(extractor: MetadataExtractor): Map<String, String> {
            if (DETAILS !in extractor.files()) return emptyMap()
            val values = try {
                JSONObject(extractor.text(DETAILS))
            } catch (_: JSONException) {
                return emptyMap()
            }
            return values.keys().asSequence().associateWith { key ->
                val value = values.get(key)
                if (value is JSONObject) value.optString("name") else "$value"
            }
        }

        // Without an archive the reader throws instead of giving an empty set.
        private fun MetadataExtractor.files(): Set<String> = try {
            associatedFileNames.orEmpty()
        } catch (_: IllegalStateException) {
            emptySet()
        }

        private fun MetadataExtractor.text(file: String): String =
            getAssociatedFile(file).use { it.readBytes().toString(Charsets.UTF_8) }

        private const val DETAILS = "kdtflite.json"
    }
}
