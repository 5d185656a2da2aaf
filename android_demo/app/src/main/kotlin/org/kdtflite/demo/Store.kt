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
 * Keeps what must survive the process: results, and copies of the opened model, golden vectors and
 * picture, because the picker's permission to read them ends with the activity.
 */
class Store(private val context: Context) {
    private val opened = File(context.noBackupFilesDir, "opened.tflite")
    private val openedGolden = File(context.noBackupFilesDir, "opened.json")
    private val values = context.getSharedPreferences("demo", Context.MODE_PRIVATE)

    /** The chosen picture; may not exist. */
    val picture = File(context.cacheDir, "picture")

    /** Reads the model that comes with the app. */
    fun readBundled(): ModelFile =
        context.assets.open(MODEL).use { ModelFile.read(readBundledName(), it) }

    fun readBundledGolden(): GoldenVectors? = try {
        GoldenVectors.parse(context.assets.open(GOLDEN).use { readText(it) })
    } catch (_: FileNotFoundException) {
        null
    }

    /** Reads the model that was opened last, or returns null. */
    fun readOpened(): ModelFile? = if (!opened.exists()) null else
        opened.inputStream().use { ModelFile.read(values.getString(NAME, null) ?: opened.name, it) }

    fun readOpenedGolden(): GoldenVectors? = if (!openedGolden.exists()) null else
        GoldenVectors.parse(openedGolden.inputStream().use { readText(it) })

    /** Reads a file from the picker. */
    fun readModel(uri: Uri): ModelFile = read(uri) { name, stream -> ModelFile.read(name, stream) }

    fun readGolden(uri: Uri): Pair<GoldenVectors, String> = read(uri) { _, stream ->
        val text = readText(stream)
        GoldenVectors.parse(text) to text
    }

    /** Keeps the model for the next start; null returns to the bundled one. */
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

    /** Reads a result as text, stored under the digest of its model. */
    fun readResult(kind: String, model: ModelFile): String? =
        values.getString("$kind ${model.sha256}", null)

    fun keepResult(kind: String, model: ModelFile, text: String) =
        values.edit().putString("$kind ${model.sha256}", text).apply()

    private fun <T> read(uri: Uri, use: (String, InputStream) -> T): T {
        val name = readName(uri)
        try {
            val stream = context.contentResolver.openInputStream(uri)
                ?: throw FileNotFoundException("no such file.")
            return stream.use { use(name, it) }
        } catch (failed: IOException) {
            throw Refusal(Refusal.Reason.NOT_READABLE, name, failed.message ?: "$failed")
        } catch (failed: SecurityException) {
            throw Refusal(Refusal.Reason.NOT_READABLE, name, failed.message ?: "$failed")
        }
    }

    private fun readName(uri: Uri): String {
        val column = arrayOf(OpenableColumns.DISPLAY_NAME)
        return context.contentResolver.query(uri, column, null, null, null)?.use {
            if (it.moveToFirst()) it.getString(0) else null
        } ?: uri.lastPathSegment ?: "$uri"
    }

    private fun readBundledName(): String = try {
        context.assets.open(MODEL_NAME).use { readText(it) }.trim()
    } catch (_: FileNotFoundException) {
        MODEL
    }

    /** Writes the whole file or nothing. */
    private fun replace(file: File, write: (File) -> Unit) {
        val part = File(file.path + ".part")
        write(part)
        if (!part.renameTo(file)) throw IOException("$file cannot be written.")
    }

    private fun readText(stream: InputStream) = stream.readBytes().toString(Charsets.UTF_8)

    private companion object {
        const val MODEL = "model.tflite"
        const val MODEL_NAME = "model.txt"
        const val GOLDEN = "golden.json"
        const val NAME = "name"
    }
}
