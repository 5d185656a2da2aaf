package org.kdtflite.demo

import android.app.Application

/** Holds what must outlive a rotation. */
class DemoApplication : Application() {
    val store: Store by lazy { Store(this) }
    val sentences: Sentences by lazy { Sentences(this) }
    val session: Session by lazy { Session(store, sentences) }
}
