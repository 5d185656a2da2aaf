package org.kdtflite.core

import java.io.Closeable
import java.nio.ByteBuffer

/** The kernels that compute the answer. */
enum class Kernels { XNNPACK, BUILT_IN }

/** A file in an interpreter. One thread at a time. */
interface Engine : Closeable {
    val inputs: List<TensorSpec>
    val outputs: List<TensorSpec>

    /** Runs once. Each buffer comes from [TensorSpec.buffer]; its position does not matter. */
    fun run(inputs: List<ByteBuffer>, outputs: List<ByteBuffer>)

    fun interface Factory {
        /** @throws Refusal NOT_RUNNABLE or DTYPE. */
        fun open(model: ModelFile, threads: Int, kernels: Kernels): Engine
    }
}
