"""C++ chatter on stderr is dropped, and nothing else is."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = r"""
import os, sys
from kdtflite.runtime import quiet_native_stderr
with quiet_native_stderr():
    print("python before", file=sys.stderr)
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\n")
    os.write(2, b"I0000 00:00:1795231480.409629    9808 port.cc:153] oneDNN custom operations\n")
    os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
    os.write(2, b"E0000 00:00:1795231480.4 9808 fft.cc:467] Unable to register cuFFT factory\n")
    os.write(2, b"E0000 00:00:1795231480.4 9808 real.cc:1] something broke\n")
    os.write(2, b"terminate called after throwing")
    os.system("echo from a child >&2")
print("after", file=sys.stderr)
"""


def test_only_the_chatter_is_dropped():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(done.stderr.replace("throwing", "throwing\n").splitlines()) == [
        "E0000 00:00:1795231480.4 9808 real.cc:1] something broke",
        "after",
        "from a child",
        "python before",
        "terminate called after throwing",
    ]
