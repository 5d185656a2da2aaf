"""Notices a teacher that waits for TensorFlow while TensorFlow waits for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from typing import Any

import tensorflow as tf

from kdtflite.errors import ConfigurationError

__all__ = ["call_watched", "count_inter_op_threads"]

_PATIENCE = 10.0  # seconds without work in the whole process
_GLANCE = 0.25
_IDLE_SHARE = 0.05

# One thread for all calls: libraries keep state per thread, such as pools of threads.
_worker = ThreadPoolExecutor(1, thread_name_prefix="kdtflite teacher")


def call_watched(function: Callable[..., Any], *args: Any, name: str) -> Any:
    """Calls a function that a compiled step waits for, and ends a wait that cannot end.

    The step keeps one of TensorFlow's inter-op threads. Where there is no other, compiled
    TensorFlow that the function calls (`predict` of a Keras model) would wait for it forever.

    Args:
        function: The teacher's.
        *args: Its arguments.
        name: The teacher's name, for the message.

    Raises:
        ConfigurationError: It waits inside TensorFlow and nothing in this process works.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if count_inter_op_threads() > replicas:
        return function(*args)
    started: list[int] = []

    def run() -> Any:
        started.append(threading.get_ident())
        return function(*args)

    running = _worker.submit(run)
    idle, before = 0.0, time.process_time()
    while True:
        try:
            return running.result(timeout=_GLANCE)
        except TimeoutError:
            if running.done():  # just now, or with a TimeoutError of its own
                return running.result()
        now = time.process_time()
        idle = idle + _GLANCE if now - before < _IDLE_SHARE * _GLANCE else 0.0
        before = now
        if idle >= _PATIENCE and _waits_in_tensorflow(started):
            _forget(running)
            raise ConfigurationError(
                f"The teacher {name!r} stands still: it waits for TensorFlow, whose only inter-op "
                "thread waits for the teacher. Call a Keras model in it as model(x, "
                "training=False), not by predict() or a tf.function, or call "
                "tf.config.threading.set_inter_op_parallelism_threads(4) before anything else."
            )


def count_inter_op_threads() -> int:
    """Returns how many of TensorFlow's operations run at a time."""
    set_here = tf.config.threading.get_inter_op_parallelism_threads()
    from_outside = os.environ.get("TF_NUM_INTEROP_THREADS", "")
    if set_here or from_outside.isdigit():
        return int(set_here or from_outside)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _waits_in_tensorflow(threads: list[int]) -> bool:
    # A thread that waits for a server or computes elsewhere is in the code of something else.
    frame = sys._current_frames().get(threads[0]) if threads else None
    return frame is not None and f"{os.sep}tensorflow{os.sep}" in frame.f_code.co_filename


def _forget(running: Future[Any]) -> None:
    """Takes a new thread for later calls: the old one ends once the step has given up."""
    global _worker
    running.cancel()
    _worker = ThreadPoolExecutor(1, thread_name_prefix="kdtflite teacher")
