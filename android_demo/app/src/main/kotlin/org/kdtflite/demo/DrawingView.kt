package org.kdtflite.demo

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.Path
import android.os.Bundle
import android.os.Parcelable
import android.util.AttributeSet
import android.util.TypedValue
import android.view.MotionEvent
import android.view.View

/** A square canvas, white on black like MNIST. Strokes survive a rotation. */
class DrawingView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Called when the finger lifts, and after a stroke is undone. */
    var onDrawn: () -> Unit = {}

    // Points as x, y in fractions of the side, so that a rotation keeps the drawing.
    private val strokes = mutableListOf<MutableList<Float>>()
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = Color.WHITE
        style = Paint.Style.STROKE
        strokeCap = Paint.Cap.ROUND
        strokeJoin = Paint.Join.ROUND
    }
    private val hint = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = Color.GRAY
        textAlign = Paint.Align.CENTER
        textSize = TypedValue.applyDimension(
            TypedValue.COMPLEX_UNIT_SP, 16f, resources.displayMetrics,
        )
    }

    val isEmpty: Boolean get() = strokes.isEmpty()

    /** The canvas as bytes, [SIDE] × [SIDE]: 0 is paper, 255 is ink. */
    fun gray(): ByteArray {
        val bitmap = Bitmap.createBitmap(SIDE, SIDE, Bitmap.Config.ARGB_8888)
        draw(Canvas(bitmap), SIDE.toFloat())
        val pixels = IntArray(SIDE * SIDE)
        bitmap.getPixels(pixels, 0, SIDE, 0, 0, SIDE, SIDE)
        bitmap.recycle()
        return ByteArray(pixels.size) { (pixels[it] and 0xFF).toByte() }
    }

    fun clear() {
        strokes.clear()
        notifyChanged()
    }

    fun undo() {
        strokes.removeLastOrNull()
        notifyChanged()
    }

    private fun notifyChanged() {
        invalidate()
        onDrawn()
    }

    override fun onMeasure(width: Int, height: Int) {
        // In landscape, the whole square must fit on the screen.
        val room = resources.displayMetrics.heightPixels * 6 / 10
        val side = minOf(MeasureSpec.getSize(width), room)
        setMeasuredDimension(side, side)
    }

    override fun onDraw(canvas: Canvas) {
        draw(canvas, width.toFloat())
        if (isEmpty) {
            val text = context.getString(R.string.draw_hint)
            canvas.drawText(text, width / 2f, height / 2f, hint)
        }
    }

    private fun draw(canvas: Canvas, side: Float) {
        canvas.drawColor(Color.BLACK)
        paint.strokeWidth = side * PEN
        for (stroke in strokes) {
            val path = Path().apply { moveTo(stroke[0] * side, stroke[1] * side) }
            for (i in stroke.indices step 2) path.lineTo(stroke[i] * side, stroke[i + 1] * side)
            canvas.drawPath(path, paint)
        }
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                parent.requestDisallowInterceptTouchEvent(true)
                strokes += mutableListOf<Float>()
                add(event.x, event.y)
            }
            MotionEvent.ACTION_MOVE -> {
                // A finger visits several points between two frames.
                for (i in 0 until event.historySize) {
                    add(event.getHistoricalX(i), event.getHistoricalY(i))
                }
                add(event.x, event.y)
            }
            MotionEvent.ACTION_UP -> performClick()
            MotionEvent.ACTION_CANCEL -> undo()
        }
        invalidate()
        return true
    }

    override fun performClick(): Boolean {
        super.performClick()
        onDrawn()
        return true
    }

    private fun add(x: Float, y: Float) {
        strokes.lastOrNull()?.apply {
            add(x / width)
            add(y / width)
        }
    }

    override fun onSaveInstanceState(): Parcelable = Bundle().apply {
        putParcelable(SUPER, super.onSaveInstanceState())
        putInt(COUNT, strokes.size)
        strokes.forEachIndexed { i, stroke -> putFloatArray("$i", stroke.toFloatArray()) }
    }

    @Suppress("DEPRECATION") // The other overload needs API 33.
    override fun onRestoreInstanceState(state: Parcelable?) {
        val saved = state as? Bundle ?: return super.onRestoreInstanceState(state)
        super.onRestoreInstanceState(saved.getParcelable(SUPER))
        strokes.clear()
        for (i in 0 until saved.getInt(COUNT)) {
            strokes += saved.getFloatArray("$i")!!.toMutableList()
        }
        notifyChanged()
    }

    companion object {
        /** Side in pixels of the drawing from which the model's image is made. */
        const val SIDE = 280
        private const val PEN = 0.08f // as thick as MNIST's strokes after scaling
        private const val SUPER = "super"
        private const val COUNT = "count"
    }
}
