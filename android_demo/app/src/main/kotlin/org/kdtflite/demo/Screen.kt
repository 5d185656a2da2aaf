package org.kdtflite.demo

import android.app.Activity
import android.content.Intent
import android.view.View

/** One tab. */
interface Screen {
    val root: View

    /** Shows the state of the session; called after each change. */
    fun refresh() {}

    /** Handles the picker's answer to a request of this screen. */
    fun onPicked(request: Int, data: Intent) {}
}

/** Asks the system's picker for a file; needs no permission. */
fun Activity.pick(request: Int, type: String) {
    val intent = Intent(Intent.ACTION_OPEN_DOCUMENT)
        .addCategory(Intent.CATEGORY_OPENABLE).setType(type)
    startActivityForResult(intent, request)
}

object Request {
    const val PICTURE = 1
    const val MODEL = 2
    const val GOLDEN = 3
}
