package org.kdtflite.demo

import android.content.Context
import android.net.Uri
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import org.kdtflite.core.GoldenVectors
import org.kdtflite.core.ModelFile
import org.kdtflite.core.Refusal

/**
 * What must outlive the process: copies of the model, the golden vectors and the picture that were
 * opened (the picker's permission to read them ends with the activity), and results.
 */
class Store(private val context: Context) {
    private val opened = File(context.noBackupFilesDir, "opened.tflite")
    private val openedGolden = File(context.noBackupFilesDir, "opened.json")
    private val values = context.getSharedPreferences("demo", Context.MODE_PRIVATE)

    /** The picture that was chosen; may not exist. */
    val picture = File(context.cacheDir, "picture")

    /** The model that came with the app. */
    fun bundled(): ModelFile =
        context.assets.open(MODEL).use { ModelFile.read(bundledName(), it) }

    fun bundledGolden(): GoldenVectors? = try {
        GoldenVectors.parse(context.assets.open(GOLDEN).use { text(it) })
    } catch (_: FileNotFoundException) {
        null
    }

    /** The model that was opened last, or null. */
    fun opened(): ModelFile? = if (!opened.exists()) null else
        opened.inputStream().use { ModelFile.read(values.getString(NAME, null) ?: opened.name, it) }

    fun openedGolden(): GoldenVectors? = if (!openedGolden.exists()) null else
        GoldenVectors.parse(openedGolden.inputStream().use { text(it) })

    /** Reads a file that the picker gave. */
    fun model(uri: Uri): ModelFile = read(uri) { name, stream -> ModelFile.read(name, stream) }

    fun golden(uri: Uri): Pair<GoldenVectors, String> = read(uri) { _, stream ->
        val text = text(stream)
        GoldenVectors.parse(text) to text
    }

    /** Keeps the model for the next start; null goes back to the bundled one. */
    fun keep(model: ModelFile?) {
        if (model == null) opened.delete()
        else {
            val bytes = ByteArray(model.size).also { model.buffer().get(it) }
            replace(opened) { it.writeBytes(bytes) }
            values.edit().putString(NAME, model.name).apply()
        }
        openedGolden.delete()
    }

    fun keepGolden(text: String) = replace(openedGolden) { it.writeText(text) }

    fun keepPicture(uri: Uri) = read(uri) { _, stream ->
        replace(picture) { file -> file.outputStream().use { stream.copyTo(it) } }
    }

    /** A result as text, kept with the digest of the model that it is of. */
    fun result(kind: String, model: ModelFile): String? =
        values.getString("$kind ${model.sha256}", null)

    fun keepResult(kind: String, model: ModelFile, text: String) =
        values.edit().putString("$kind ${model.sha256}", text).apply()

    private fun <T> read(uri: Uri, use: (String, InputStream) -> T): T {
        val name = name(uri)
        try {
            val stream = context.contentResolver.openInputStream(uri)
                ?: throw FileNotFoundException("nothing is there.")
            return stream.use { use(name, it) }
        } catch (failed: IOException) {
            throw Refusal(Refusal.Reason.NOT_READABLE, name, failed.message ?: "$failed")
        } catch (failed: SecurityException) {
            throw Refusal(Refusal.Reason.NOT_READABLE, name, failed.message ?: "$failed")
        }
    }

    private fun name(uri: Uri): String {
        val column = arrayOf(OpenableColumns.DISPLAY_NAME)
        return context.contentResolver.query(uri, column, null, null, null)?.use {
            if (it.moveToFirst()) it.getString(0) else null
        } ?: uri.lastPathSegment ?: "$uri"
    }

    private fun bundledName(): String = try {
        context.assets.open(MODEL_NAME).use { text(it) }.trim()
    } catch (_: FileNotFoundException) {
        MODEL
    }

    /** Whole or not at all. */
    private fun replace(file: File, write: (File) -> Unit) {
        val part = File(file.path + ".part")
        write(part)
        if (!part.renameTo(file)) throw IOException("$file cannot be written.")
    }

    private fun text(stream: InputStream) = stream.readBytes().toString(Charsets.UTF_8)

    private companion object {
        const val MODEL = "model.tflite"
        const val MODEL_NAME = "model.txt"
        const val GOLDEN = "golden.json"
        const val NAME = "name"
    }
}
