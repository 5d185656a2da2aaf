package org.kdtflite.core

import java.nio.ByteBuffer

/** Answers with a function on codes, to test the code around an engine. */
class FakeEngine(
    override val inputs: List<TensorSpec>,
    override val outputs: List<TensorSpec>,
    private val answer: (FloatArray) -> FloatArray,
) : Engine {
    var runs = 0
    var closed = false

    override fun run(inputs: List<ByteBuffer>, outputs: List<ByteBuffer>) {
        check(!closed) { "Closed." }
        runs++
        this.outputs[0].encode(answer(this.inputs[0].decode(inputs[0])), outputs[0])
    }

    override fun close() {
        closed = true
    }
}

/** A file of a few bytes that starts like a model. */
fun fakeModel(): ModelFile =
    ModelFile.read("fake.tflite", "....TFL3........".toByteArray().inputStream())
