package org.kdtflite.demo

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.net.Uri
import android.os.Bundle
import android.os.Looper
import android.os.SystemClock
import android.view.MotionEvent
import android.view.View
import android.widget.RadioGroup
import android.widget.TextView
import java.io.ByteArrayInputStream
import java.io.File
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** The app after a start, with its own model and the APK's runtime. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34], qualifiers = "w360dp-h740dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class ScreensTest {
    private lateinit var controller: ActivityController<MainActivity>
    private val activity get() = controller.get()
    private val app get() = RuntimeEnvironment.getApplication() as DemoApplication
    private val session get() = app.session

    @Before
    fun start() {
        controller = Robolectric.buildActivity(MainActivity::class.java).setup()
        until("the model is open") { session.open != null }
    }

    @After
    fun stop() {
        controller.pause().stop().destroy()
    }

    @Test
    fun `a drawing is classified when the finger lifts`() {
        assertEquals(View.INVISIBLE, answer(R.id.draw_answer).visibility)
        drawSeven()
        until("there is an answer") { answer(R.id.draw_answer).visibility == View.VISIBLE }
        val spoken = bars(R.id.draw_answer)
        assertTrue(spoken, Regex("^[^:]+: .* percent; .* percent; .* percent").containsMatchIn(spoken))
        picture("draw")
        find<View>(R.id.clear).performClick()
        idle()
        assertEquals(View.INVISIBLE, answer(R.id.draw_answer).visibility)
    }

    @Test
    @Config(qualifiers = "w360dp-h740dp-night-xhdpi")
    fun `the dark theme is dark`() {
        drawSeven()
        until("there is an answer") { answer(R.id.draw_answer).visibility == View.VISIBLE }
        val shown = picture("draw_dark")
        // There is background between the canvas and the edge.
        val background = shown.getPixel(4, shown.height - 4)
        assertTrue(Integer.toHexString(background), Color.luminance(background) < 0.1f)
    }

    @Test
    fun `a rotation keeps the drawing and the tab`() {
        drawSeven()
        until("there is an answer") { answer(R.id.draw_answer).visibility == View.VISIBLE }
        val before = bars(R.id.draw_answer)
        tab(R.id.tab_model)
        rotate()
        assertEquals(R.id.tab_model, find<RadioGroup>(R.id.tabs).checkedRadioButtonId)
        assertTrue(find<View>(R.id.screen_model).visibility == View.VISIBLE)
        assertEquals(View.GONE, find<View>(R.id.screen_draw).visibility)
        until("the answer is back") { answer(R.id.draw_answer).visibility == View.VISIBLE }
        assertEquals(before, bars(R.id.draw_answer))
        tab(R.id.tab_draw)
        picture("draw_landscape")
    }

    @Test
    fun `the model's screen shows the file's metadata`() {
        tab(R.id.tab_model)
        val text = find<TextView>(R.id.model_lines).text.toString()
        assertTrue(text, session.open!!.model.sha256 in text)
        assertTrue(text, "scale" in text && "zero point" in text)
        assertFalse(find<View>(R.id.bundled_model).isEnabled)
        picture("model")
    }

    @Test
    fun `after a file that is not a model the current one stays, with one sentence`() {
        val former = session.open
        pickFile(Request.MODEL, "notes.txt", "no model at all".toByteArray())
        until("it is refused") { session.notice != null }
        assertEquals(
            "notes.txt is not a .tflite file. The current model stays open.",
            find<TextView>(R.id.notice).text.toString(),
        )
        assertTrue(former === session.open)
        picture("refused")
        drawSeven()
        until("there is an answer") { answer(R.id.draw_answer).visibility == View.VISIBLE }
        // Neither an answer nor a rotation removes the sentence.
        rotate()
        assertEquals(View.VISIBLE, find<View>(R.id.notice).visibility)
    }

    @Test
    fun `each file of the cases is opened or refused, and the opened one survives the process`() {
        for (file in File(System.getProperty("kdtflite.cases")).listFiles()!!.sorted()) {
            if (file.extension != "tflite") continue
            val former = session.open
            pickFile(Request.MODEL, file.name, file.readBytes())
            until("$file is opened or refused") { session.open !== former || session.notice != null }
            assertEquals("${session.notice}", ".refused" in file.name, session.notice != null)
        }
        val opened = session.open!!
        assertFalse(opened.isBundled)
        assertTrue(find<View>(R.id.bundled_model).isEnabled)
        // Another process starts with what the store has.
        val next = Session(app.store, app.sentences)
        until("it is open again") { next.open != null }
        assertEquals(opened.model.sha256, next.open!!.model.sha256)
        assertEquals(opened.model.name, next.open!!.model.name)
        find<View>(R.id.bundled_model).performClick()
        until("the app's own model is back") { session.open!!.isBundled }
        assertEquals(null, app.store.readOpened())
    }

    @Test
    fun `the self-test shows what is bit-identical, and keeps it`() {
        tab(R.id.tab_self_test)
        find<View>(R.id.self_test_run).performClick()
        until("it is done") { !session.selfTest.isRunning && session.selfTestText != null }
        val text = find<TextView>(R.id.self_test_lines).text.toString()
        assertTrue(text, text.startsWith("Passed.\nXNNPACK: "))
        assertTrue(text, Regex("Quantizer: (\\d+) of \\1 values correct").containsMatchIn(text))
        picture("self_test")
        rotate()
        assertEquals(text, find<TextView>(R.id.self_test_lines).text.toString())
    }

    @Test
    fun `golden vectors of another model and other text are refused`() {
        val golden = session.open!!.golden
        pickFile(Request.GOLDEN, "golden.json", "{}".toByteArray())
        until("it is refused") { session.notice != null }
        assertTrue(session.notice, session.notice!!.startsWith("These are not golden vectors"))
        assertTrue(golden === session.open!!.golden)
    }

    @Test
    fun `the benchmark shows its rows, can be shared and canceled`() {
        tab(R.id.tab_benchmark)
        assertFalse(find<View>(R.id.benchmark_share).isEnabled)
        find<View>(R.id.benchmark_run).performClick()
        assertFalse(find<View>(R.id.benchmark_run).isEnabled)
        find<View>(R.id.benchmark_cancel).performClick()
        until("it is canceled") { !session.benchmark.isRunning }
        assertTrue(find<TextView>(R.id.benchmark_state).text.startsWith("Canceled."))
        assertEquals(null, session.benchmarkText)
        find<View>(R.id.benchmark_run).performClick()
        until("it is done") { !session.benchmark.isRunning }
        assertEquals(6, Regex("^(XNNPACK|built-in) ", RegexOption.MULTILINE)
            .findAll(find<TextView>(R.id.benchmark_rows).text).count())
        picture("benchmark")
        find<View>(R.id.benchmark_share).performClick()
        assertNotNull(shadowOf(activity).nextStartedActivity)
    }

    @Test
    fun `a picture is classified and comes back after a rotation`() {
        tab(R.id.tab_pictures)
        find<View>(R.id.choose).performClick()
        val asked = shadowOf(activity).nextStartedActivityForResult
        assertEquals("image/*", asked.intent.type)
        val bitmap = Bitmap.createBitmap(300, 200, Bitmap.Config.ARGB_8888)
        Canvas(bitmap).drawColor(Color.rgb(30, 90, 200))
        pickFile(Request.PICTURE, "sky.png", png(bitmap))
        until("there is an answer") { answer(R.id.picture_answer).visibility == View.VISIBLE }
        picture("pictures")
        rotate()
        until("the answer is back") { answer(R.id.picture_answer).visibility == View.VISIBLE }
        pickFile(Request.PICTURE, "letter.txt", "no picture".toByteArray())
        until("it is refused") { session.notice != null }
        assertTrue(session.notice, "is not a picture" in session.notice!!)
    }

    @Test
    fun `everything that can be touched is large enough and has a name`() {
        for (id in listOf(R.id.tab_draw, R.id.tab_pictures, R.id.tab_model, R.id.tab_benchmark,
            R.id.tab_self_test)) {
            tab(id)
            idle()
            for (view in touchable(activity.window.decorView)) {
                val name = (view as? TextView)?.text ?: view.contentDescription
                assertTrue("$view", !name.isNullOrEmpty())
                assertTrue("$name: ${view.height} pixels", view.height >= 2 * 48)
            }
        }
    }

    private fun touchable(view: View): List<View> = when {
        view.visibility != View.VISIBLE -> emptyList()
        view is android.view.ViewGroup ->
            (0 until view.childCount).flatMap { touchable(view.getChildAt(it)) }
        view is DrawingView || view.isClickable && view !is TextView ||
            view is android.widget.Button -> listOf(view)
        else -> emptyList()
    }

    private fun <T : View> find(id: Int): T = activity.findViewById(id)

    private fun answer(id: Int): View = find(id)

    private fun bars(id: Int): String =
        answer(id).findViewById<View>(R.id.bars).contentDescription.toString()

    private fun tab(id: Int) {
        find<View>(id).performClick()
        idle()
    }

    private fun rotate() {
        val state = Bundle()
        controller.pause().stop().saveInstanceState(state).destroy()
        RuntimeEnvironment.setQualifiers("w740dp-h360dp-land")
        controller = Robolectric.buildActivity(MainActivity::class.java).create(state).start()
            .restoreInstanceState(state).postCreate(state).resume().visible()
        idle()
    }

    /** Draws a 7: to the right, then down. */
    private fun drawSeven() {
        idle()
        val canvas = find<View>(R.id.canvas)
        val side = canvas.width.toFloat()
        assertTrue("the canvas has a size", side > 0)
        val points = listOf(0.3f to 0.25f, 0.7f to 0.25f, 0.6f to 0.5f, 0.45f to 0.8f)
        val start = SystemClock.uptimeMillis()
        for ((i, point) in points.withIndex()) {
            val action = if (i == 0) MotionEvent.ACTION_DOWN else MotionEvent.ACTION_MOVE
            touch(canvas, start, action, point.first * side, point.second * side)
        }
        touch(canvas, start, MotionEvent.ACTION_UP, points.last().first * side, 0.8f * side)
    }

    private fun touch(view: View, start: Long, action: Int, x: Float, y: Float) {
        val event = MotionEvent.obtain(start, SystemClock.uptimeMillis(), action, x, y, 0)
        view.dispatchTouchEvent(event)
        event.recycle()
    }

    private fun pickFile(request: Int, name: String, content: ByteArray) {
        val uri = Uri.parse("content://files/${Uri.encode(name)}")
        shadowOf(activity.contentResolver).registerInputStream(uri, ByteArrayInputStream(content))
        val data = android.content.Intent().setData(uri)
        val method = Activity::class.java.getDeclaredMethod(
            "onActivityResult", Int::class.java, Int::class.java, android.content.Intent::class.java,
        )
        method.isAccessible = true
        method.invoke(activity, request, Activity.RESULT_OK, data)
    }

    private fun until(what: String, condition: () -> Boolean) {
        val end = System.nanoTime() + 15_000_000_000
        while (!condition()) {
            assertTrue("Waited in vain until $what. ${session.notice}", System.nanoTime() < end)
            idle()
            Thread.sleep(5)
        }
        idle()
    }

    private fun idle() = shadowOf(Looper.getMainLooper()).idle()

    /** Draws the screen and saves it as a picture. */
    private fun picture(name: String): Bitmap {
        idle()
        val view = activity.window.decorView
        val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
        view.draw(Canvas(bitmap))
        val folder = File(System.getProperty("kdtflite.pictures")).apply { mkdirs() }
        File(folder, "$name.png").writeBytes(png(bitmap))
        return bitmap
    }

    private fun png(bitmap: Bitmap): ByteArray = java.io.ByteArrayOutputStream().also {
        bitmap.compress(Bitmap.CompressFormat.PNG, 100, it)
    }.toByteArray()
}
