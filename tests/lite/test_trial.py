"""A file runs in another process before it runs here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kdtflite.errors import ModelFileError
from kdtflite.forking import Outcome
from kdtflite.lite import LiteModel, load_untrusted, trial, trial_server

ROOT = Path(__file__).parents[2]
DEBUG = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
X = np.random.default_rng(0).uniform(size=(9, 28, 28, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def content():
    return (ROOT / "android_demo" / "models" / "mnist.tflite").read_bytes()


def vary(content, text):
    """Returns a file that does the same and has not been tried: more bytes behind its end."""
    return content + str(text).encode()


@pytest.mark.parametrize("signal_number", [6, 11])
def test_a_crash_in_the_trial_is_one_sentence(content, signal_number, monkeypatch, tmp_path):
    monkeypatch.setattr(trial._server, "run", lambda *_: Outcome(-signal_number))
    fresh = vary(content, str(signal_number))
    path = tmp_path / "model.tflite"
    path.write_bytes(fresh)
    name = {6: "SIGABRT", 11: "SIGSEGV"}[signal_number]
    lite = LiteModel.load(path)  # reading it is safe
    with pytest.raises(ModelFileError, match=rf"LiteRT crashes on this file \({name}\)"):
        lite.predict(X)
    with pytest.raises(ModelFileError, match=rf"model\.tflite: LiteRT crashes .*{name}"):
        LiteModel.load(path, sandbox=True)


@pytest.mark.parametrize(("limit", "words"), [("time", "20 seconds"), ("memory", "2 GB")])
def test_a_limit_reached_in_the_trial_names_it_and_the_way_out(content, limit, words, monkeypatch):
    monkeypatch.setattr(trial._server, "run", lambda *_: Outcome(-9, limit))
    lite = LiteModel(vary(content, limit))
    with pytest.raises(ModelFileError, match=rf"takes over {words}.*sandbox=False"):
        lite.predict(X)


def test_a_trusted_file_is_not_tried(content, monkeypatch, tmp_path):
    monkeypatch.setattr(trial._server, "run", lambda *_: pytest.fail("tried the file"))
    path = tmp_path / "model.tflite"
    path.write_bytes(vary(content, "trusted"))
    assert LiteModel.load(path, sandbox=False).predict(X).shape == (9, 10)


def test_the_trial_kills_a_child_that_takes_too_long_or_too_much(content):
    job = {
        "kernels": ["XNNPACK"],
        "compare": False,
        "keep_tensors": False,
        "resize": (),
        "seconds": 20,
        "memory": 2 << 30,
    }
    assert trial._server.run(job, content).limit == ""
    # A batch of two hundred thousand images: 157 MB for the inputs, and more for what follows.
    large = {**job, "resize": ((LiteModel(content).inputs[0].index, (200_000, 28, 28, 1)),)}
    assert trial._server.run({**large, "memory": 1 << 26}, content).limit == "memory"
    assert trial._server.run({**large, "seconds": 0}, content).limit == "time"


def test_the_trial_ends_where_a_file_never_does(monkeypatch):
    @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.float32)])
    def model(x):
        return tf.while_loop(lambda v: tf.reduce_sum(v) < 1e30, lambda v: [v * 1.0], [x])[0]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
    lite = LiteModel(converter.convert())
    monkeypatch.setattr(trial, "_SECONDS", 1)
    with pytest.raises(ModelFileError, match="takes over 1 seconds"):
        lite.predict(np.ones((1, 2), np.float32))


def test_the_trial_goes_on_after_its_process_was_killed(content):
    os.kill(trial._server.pid, signal.SIGKILL)
    trial._answers.clear()
    assert LiteModel(content).predict(X).shape == (9, 10)


def test_no_process_is_left_behind(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    program = (
        "from kdtflite.lite import LiteModel, trial; import os, signal; "
        f"LiteModel.load({str(path)!r}, sandbox=True); print(trial._server.pid, "
        "flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert finished.returncode == -9, finished.stderr
    server = int(finished.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{server}/stat").read_text().split()[2]
        except OSError:
            return
        if state == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the process that tries files outlives its caller")


def test_only_the_kernels_asked_for_must_run_the_file(content, monkeypatch, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(vary(content, "kernels"))

    def run(job, _, listen):
        listen(json.dumps([["no kernel.\n" if "XNNPACK" in job["kernels"] else "", ""]]))
        return Outcome(0)

    monkeypatch.setattr(trial._server, "run", run)
    assert load_untrusted(path, kernels=("built-in kernels",)).content == path.read_bytes()
    with pytest.raises(
        ModelFileError, match=r"model\.tflite: LiteRT cannot .* XNNPACK: no kernel\."
    ):
        load_untrusted(path, kernels=("XNNPACK",))


@pytest.mark.skipif(not DEBUG.exists(), reason="of Debian's glibc on x86")
def test_a_trial_sees_a_byte_that_is_written_past_its_memory():
    # A bytearray of 1,000 bytes takes 1,001 from malloc.
    program = (
        "import ctypes; block = bytearray(1000)\n"
        "place = ctypes.addressof((ctypes.c_char * 1000).from_buffer(block))\n"
        "ctypes.memset(place + 1001, 0x55, 1); del block"
    )
    environment = trial._server.make_environment()
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == -signal.SIGABRT


def test_every_kind_of_input_gets_its_extremes():
    draw = np.random.default_rng(0)

    def make(kind, dtype):
        return np.unique(trial_server._make_values(kind, (3, 2), np.dtype(dtype), draw)).tolist()

    assert make("least", "int8") == [-128]
    assert make("greatest", "uint8") == [255]
    assert make("greatest", "float32") == [1000]
    assert make("least", "int32") == [0]  # a word's number may be out of a table
    assert len(make("random", "int16")) > 1
