package org.kdtflite.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.util.TypedValue
import android.view.View
import org.kdtflite.core.Ranked

/** The best classes, with one bar each. */
class BarsView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private var top: List<Ranked> = emptyList()
    private val sentences = (context.applicationContext as DemoApplication).sentences
    private val line = sp(16f)
    private val text = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        textSize = line * 0.9f
        color = themeColor(android.R.attr.textColorPrimary)
    }
    private val bar = Paint().apply { color = context.getColor(R.color.accent) }
    private val track = Paint().apply { color = context.getColor(R.color.bar_track) }

    fun show(top: List<Ranked>) {
        this.top = top
        contentDescription = sentences.describeAnswer(top)
        invalidate()
    }

    override fun onMeasure(width: Int, height: Int) =
        setMeasuredDimension(MeasureSpec.getSize(width), (ROWS * ROW * line).toInt())

    override fun onDraw(canvas: Canvas) {
        val right = width.toFloat()
        for ((i, ranked) in top.take(ROWS).withIndex()) {
            val base = i * ROW * line + line
            text.textAlign = Paint.Align.LEFT
            canvas.drawText(sentences.formatLabel(ranked), 0f, base, text)
            text.textAlign = Paint.Align.RIGHT
            canvas.drawText(sentences.formatScore(ranked), right, base, text)
            val (from, to) = base + line * 0.4f to base + line * 0.8f
            canvas.drawRect(0f, from, right, to, track)
            canvas.drawRect(0f, from, right * ranked.share.coerceIn(0f, 1f), to, bar)
        }
    }

    private fun themeColor(attribute: Int): Int {
        val value = TypedValue()
        context.theme.resolveAttribute(attribute, value, true)
        return context.getColor(value.resourceId)
    }

    private fun sp(size: Float): Float =
        TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, size, resources.displayMetrics)

    private companion object {
        const val ROWS = 3
        const val ROW = 2.2f
    }
}
