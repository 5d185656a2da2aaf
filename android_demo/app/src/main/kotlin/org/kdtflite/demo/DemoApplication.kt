package org.kdtflite.demo

import android.app.Application

/** Holds everything that must survive a rotation. */
class DemoApplication : Application() {
    val store: Store by lazy { Store(this) }
    val sentences: Sentences by lazy { Sentences(this) }
    val session: Session by lazy { Session(store, sentences) }
}
