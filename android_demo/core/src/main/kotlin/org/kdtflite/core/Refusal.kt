package org.kdtflite.core

/**
 * Why a file is refused. An app shows its own sentence for [reason], filled with [details];
 * [message] is the English one.
 */
class Refusal(val reason: Reason, vararg val details: String) :
    Exception(reason.sentence.format(*details)) {

    enum class Reason(internal val sentence: String) {
        /** Details: file, the system's message. */
        NOT_READABLE("%1\$s cannot be read: %2\$s"),

        /** Details: file. */
        NO_MODEL("%1\$s is not a .tflite file: its bytes 5 to 8 are not TFL3."),

        /** Details: file, the limit in MB. */
        TOO_LARGE("%1\$s is larger than the %2\$s MB that this app opens."),

        /** Details: file, the runtime's message. */
        NOT_RUNNABLE("The runtime in this app cannot run %1\$s: %2\$s"),

        /** Details: file, tensor, dtype. */
        DTYPE("%2\$s of %1\$s has dtype %3\$s; expected int8, uint8, int16, int32 or float32."),

        /** Details: file, number of inputs. */
        INPUTS("%1\$s has %2\$s inputs; expected one image."),

        /** Details: file, shape. */
        SHAPE(
            "%1\$s takes %2\$s; expected an image of shape 1 × height × width × 1 or 3 channels."
        ),

        /** Details: file, shape. */
        OUTPUT("%1\$s gives %2\$s; expected one score per class, of shape 1 × classes."),

        /** Details: file. */
        NO_PICTURE("%1\$s is not a picture that this device can read."),

        /** Details: what is wrong. */
        NO_GOLDEN("These are not golden vectors of kdtflite: %1\$s"),

        /** Details: the model's file, the file that the vectors belong to. */
        OTHER_MODEL("The golden vectors belong to %2\$s, whose bytes differ from those of %1\$s."),
    }
}
