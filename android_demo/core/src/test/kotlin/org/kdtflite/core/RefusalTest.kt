package org.kdtflite.core

import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class RefusalTest {
    @Test
    fun `every reason is one sentence with its details in their places`() {
        for (reason in Refusal.Reason.entries) {
            val message = Refusal(reason, "ONE", "TWO", "THREE").message!!
            assertTrue("ONE" in message || "TWO" in message, message)
            assertFalse("%" in message, message)
        }
    }
}
