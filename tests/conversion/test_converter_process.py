"""The process that converts: reused, replaced when it has ended, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.conversion.converter_process import run_converter, server
from kdtflite.errors import ConversionError

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def convert(model, **options):
    return kdtflite.convert(model, X, progress=False, **options)


def test_the_next_conversion_uses_the_same_process_and_gives_the_same_bytes(model):
    server.stop()
    first = convert(model)
    process = server.pid
    assert convert(model).content == first.content
    assert server.pid == process


def test_a_process_that_was_killed_while_it_waited_is_replaced(model):
    first = convert(model)
    process = server.pid
    os.kill(process, signal.SIGKILL)
    assert convert(model).content == first.content
    assert server.pid != process


def test_a_job_that_fails_leaves_the_process_for_the_next_one(model, tmp_path):
    (tmp_path / "job.json").write_text('{"model": "nothing", "target": "int8"}')
    convert(model)
    process = server.pid
    code, _ = run_converter(tmp_path, samples=0, progress=False)
    assert code == 1
    assert "SavedModel" in (tmp_path / "error.txt").read_text()
    convert(model)
    assert server.pid == process


def test_a_process_that_cannot_start_is_an_error_with_its_own_words(model, monkeypatch):
    server.stop()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(ConversionError, match="converter failed"):
            convert(model)
    convert(model)


CALLER = """
import os, signal, sys
from pathlib import Path
from kdtflite.conversion import converter_process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
folder = Path(sys.argv[1])
print(os.getpid(), flush=True)
converter_process.run_converter(folder, samples=0, progress=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_caller_that_is_stopped_takes_its_conversion_along(tmp_path, kind):
    # A named pipe in place of the job keeps the conversion waiting.
    folder = tmp_path / "job"
    folder.mkdir()
    os.mkfifo(folder / "job.json")
    caller = subprocess.Popen([sys.executable, "-c", CALLER, folder])
    wait_for(lambda: (folder / "log.txt").exists())
    processes = list_descendants(caller.pid)
    assert len(processes) == 2  # the process that waits for jobs, and the job
    caller.send_signal(kind)
    caller.wait()
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    if kind != signal.SIGINT:  # then the caller lives, and removes its folder itself
        wait_for(lambda: not folder.exists())


def list_descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in children for each in (child, *list_descendants(child))]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
