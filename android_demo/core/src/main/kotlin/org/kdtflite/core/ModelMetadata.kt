package org.kdtflite.core

import java.nio.ByteBuffer
import org.json.JSONException
import org.json.JSONObject
import org.tensorflow.lite.support.metadata.MetadataExtractor
import org.tensorflow.lite.support.metadata.schema.NormalizationOptions
import org.tensorflow.lite.support.metadata.schema.ProcessUnitOptions
import org.tensorflow.lite.support.metadata.schema.TensorMetadata

/**
 * The metadata of a file, in TensorFlow Lite's format.
 *
 * @property inputs One entry per input, in the file's order.
 * @property outputs One entry per output, in the file's order.
 * @property details Values that the standard has no field for: target, recipe, data.
 * @property problem Why the metadata could not be read, or null. The model works without it.
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
    /** Whether the file has readable metadata. */
    val isPresent: Boolean get() = this != NONE && problem == null

    /**
     * @property mean Subtracted from an input before it is divided by [std]: one value, or one per
     *     channel. Empty if the metadata has none.
     * @property labels Name of each class of an output; empty if the metadata has none.
     */
    data class Tensor(
        val name: String = "",
        val mean: List<Float> = emptyList(),
        val std: List<Float> = emptyList(),
        val labels: List<String> = emptyList(),
    )

    companion object {
        /** For a file without metadata. */
        val NONE = ModelMetadata()

        /** Reads the metadata. Damaged metadata gives [NONE] with a [problem], never an exception. */
        fun read(model: ByteBuffer): ModelMetadata = try {
            val extractor = MetadataExtractor(model)
            if (extractor.hasMetadata()) read(extractor) else NONE
        } catch (damaged: Exception) {
            // The reader has no exception of its own: it throws index, state and buffer errors.
            NONE.copy(problem = damaged.message ?: damaged.javaClass.simpleName)
        } catch (damaged: OutOfMemoryError) {
            // It makes a list as long as the file says, which a damaged count lets fail at once.
            NONE.copy(problem = "a count in the file is damaged")
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

        private fun tensor(extractor: MetadataExtractor, metadata: TensorMetadata?): Tensor {
            if (metadata == null) return Tensor()
            val normalization = (0 until metadata.processUnitsLength()).map { metadata.processUnits(it) }
                .firstOrNull { it.optionsType() == ProcessUnitOptions.NormalizationOptions }
                ?.let { it.options(NormalizationOptions()) as NormalizationOptions? }
            val files = extractor.files()
            val labels = (0 until metadata.associatedFilesLength())
                .mapNotNull { metadata.associatedFiles(it).name() }
                .firstOrNull { it in files }
            return Tensor(
                name = metadata.name().orEmpty(),
                mean = List(normalization?.meanLength() ?: 0) { normalization!!.mean(it) },
                std = List(normalization?.stdLength() ?: 0) { normalization!!.std(it) },
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

        // Without an archive the reader throws instead of returning an empty set.
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
