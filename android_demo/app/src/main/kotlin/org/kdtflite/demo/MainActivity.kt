package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.FrameLayout
import android.widget.RadioGroup
import android.widget.TextView

/** The five screens and the notice above them. */
class MainActivity : Activity() {
    private lateinit var app: DemoApplication
    private lateinit var screens: Map<Int, Screen>
    private lateinit var tabs: RadioGroup
    private lateinit var notice: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        app = application as DemoApplication
        setContentView(R.layout.main)
        tabs = findViewById(R.id.tabs)
        notice = findViewById(R.id.notice)
        screens = mapOf(
            R.id.tab_draw to DrawScreen(this, app),
            R.id.tab_pictures to PicturesScreen(this, app),
            R.id.tab_model to ModelScreen(this, app),
            R.id.tab_benchmark to BenchmarkScreen(this, app),
            R.id.tab_self_test to SelfTestScreen(this, app),
        )
        // All of them, so that the system saves the state of each.
        val frame = findViewById<FrameLayout>(R.id.screens)
        screens.values.forEach { frame.addView(it.root) }
        tabs.setOnCheckedChangeListener { _, tab -> show(tab) }
        if (state == null) tabs.check(R.id.tab_draw)
        show(tabs.checkedRadioButtonId)
    }

    override fun onRestoreInstanceState(state: Bundle) {
        super.onRestoreInstanceState(state)
        show(tabs.checkedRadioButtonId)
    }

    override fun onStart() {
        super.onStart()
        app.session.onChange = ::refresh
        refresh()
    }

    override fun onStop() {
        super.onStop()
        app.session.onChange = {}
    }

    // The activity's own callback: androidx, which has another one, is not used.
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        if (result == RESULT_OK && data != null) {
            screens.values.forEach { it.onPicked(request, data) }
        }
    }

    private fun show(tab: Int) {
        for ((id, screen) in screens) {
            screen.root.visibility = if (id == tab) View.VISIBLE else View.GONE
        }
    }

    private fun refresh() {
        val session = app.session
        val text = session.notice
            ?: if (session.open == null) app.sentences.say(R.string.loading) else null
        if (text != notice.text.toString()) notice.text = text
        notice.visibility = if (text == null) View.GONE else View.VISIBLE
        screens.values.forEach { it.refresh() }
    }
}
