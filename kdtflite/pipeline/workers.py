"""The processes and devices that train together."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kdtflite.errors import ConfigurationError, DataError, KdtfliteError, choose
from kdtflite.leftovers import make_temporary_folder
from kdtflite.pipeline.cluster import Cluster, read_cluster
from kdtflite.progress import say

__all__ = ["ALONE", "STRATEGIES", "Workers"]

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")

T = TypeVar("T")

# A network file system may need so long to show one machine what another wrote.
_SECONDS_UNTIL_SEEN = 60.0


class Workers:
    """This process and those that it trains with; for a single process nothing changes.

    Every process does the same training in the same order. Only the chief writes into the run's
    folder, converts and measures, while the others wait. They wait in collective operations, as in
    training, so the death of a worker is noticed in the same way everywhere.

    Args:
        strategy: One of `STRATEGIES`. "auto" uses the workers of TF_CONFIG; without them all
            GPUs of this machine if there are several; otherwise the one device.

    Raises:
        ConfigurationError: No such strategy, or TF_CONFIG does not fit it.
    """

    def __init__(self, strategy: str = "none") -> None:
        self._wanted = choose(strategy, STRATEGIES, what="strategy")
        self._cluster: Cluster | None = None
        self._temporary = contextlib.ExitStack()
        if strategy in ("auto", "multi_worker"):
            self._cluster = read_cluster()
        if strategy == "multi_worker" and self._cluster is None:
            raise ConfigurationError(
                "The strategy multi_worker needs several workers. Expected the environment "
                "variable TF_CONFIG to name them. Received: TF_CONFIG="
                f"{os.environ.get('TF_CONFIG', '')!r}. docs/scale.md shows how to start two."
            )

    @property
    def has_others(self) -> bool:
        """Whether there are other processes."""
        return self._cluster is not None

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self._cluster is None or self._cluster.index == 0

    def start(self) -> None:
        """Waits for the other processes; must come before any other use of TensorFlow.

        Raises:
            ConfigurationError: TensorFlow has been used already.
        """
        if self._cluster is not None:
            _start_cluster(self._cluster)

    @functools.cached_property
    def strategy(self) -> Any:
        """The tf.distribute strategy, or None for a single device."""
        if self._cluster is not None:
            return _start_cluster(self._cluster)
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if self._wanted == "none" or (self._wanted == "auto" and len(gpus) < 2):
            return None
        devices = [
            device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")
        ]
        if len(devices) < 2:
            raise ConfigurationError(
                f"The strategy mirrored needs several GPUs. Received: {len(gpus)}. "
                "Use --strategy none, or auto, which uses what is available."
            )
        say(f"Training on {len(devices)} devices of this machine.")
        return tf.distribute.MirroredStrategy(devices)

    @contextlib.contextmanager
    def watch(self, folder: Path) -> Iterator[None]:
        """Names the worker that is lost if one dies while the block runs.

        Raises:
            KdtfliteError: Another worker died or cannot be reached.
        """
        if self._cluster is None:
            yield
            return
        import tensorflow as tf

        lost = (
            *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError),
            *(tf.errors.DeadlineExceededError, tf.errors.InternalError),
            tf.errors.FailedPreconditionError,
        )
        try:
            yield
        except lost as error:
            gone = self._cluster.find_lost()
            if not gone and not isinstance(error, tf.errors.UnavailableError):
                raise
            named = " and ".join(gone) or "another worker"
            raise KdtfliteError(
                f"The training stopped, because {named} died or cannot be reached. The last "
                f"checkpoint in {folder} is whole: start all workers again with the same command, "
                "and the run resumes from it."
            ) from error
        finally:
            # Files that only this process wrote.
            self._temporary.close()
            self.__dict__.pop("_scratch", None)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which to build and train models that train together."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def synchronize(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which `model` trains as it would on one device."""
        if self.strategy is None:
            return contextlib.nullcontext()
        from kdtflite.pipeline.synchronize import synchronize

        return synchronize(model)

    def shard(self, batches: Any) -> Any:
        """Returns the same batches, of which every worker will take its own rows."""
        if not self.has_others:
            return batches
        import tensorflow as tf

        options = tf.data.Options()
        # Not by files: every worker makes the same whole batches, and splits them alike.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return batches.with_options(options)

    def broadcast(self, value: int) -> int:
        """Waits for all processes and returns the chief's value in each of them."""
        if not self.has_others:
            return value
        import tensorflow as tf

        def of_replica(context: Any) -> tf.Tensor:
            first = context.replica_id_in_sync_group == 0
            return tf.constant(value if first else 0, tf.int64)

        values = self.strategy.experimental_distribute_values_from_function(of_replica)
        return int(self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))

    def check_same(self, text: str) -> None:
        """Refuses a process that was started with another recipe than the chief.

        Raises:
            ConfigurationError: `text` differs from the chief's.
        """
        digest = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        if self.broadcast(digest) != digest:
            raise ConfigurationError(
                "This worker was started with another recipe than the chief. Expected the same "
                "command on all workers, the same paths included. Start all of them again."
            )

    def wait_for(self, read: Callable[[], T | None], what: str) -> T:
        """Calls `read` until it finds what the chief wrote, and returns that.

        Raises:
            DataError: It does not appear in time.
        """
        until = time.monotonic() + _SECONDS_UNTIL_SEEN
        while True:
            found = read()
            if found is not None:
                return found
            if time.monotonic() > until:
                raise DataError(
                    f"This worker does not see what the chief wrote: {what}. Expected the run's "
                    "folder to be the same on all workers. Put it on a file system that they share."
                )
            time.sleep(0.5)

    def choose_folder(self, folder: Path) -> Path:
        """Returns where this process writes what the chief writes into `folder`.

        All workers have to save a model, because saving combines the statistics of which each
        worker holds a part. The files of all but the chief are thrown away.
        """
        return folder if self.is_chief else self._scratch / folder.name

    @functools.cached_property
    def _scratch(self) -> Path:
        return self._temporary.enter_context(make_temporary_folder("worker"))


ALONE = Workers()
"""A single process on a single device."""


@functools.cache
def _start_cluster(cluster: Cluster) -> Any:
    """Starts the cluster, which TensorFlow can do only once per process."""
    import tensorflow as tf

    others = [a for number, a in enumerate(cluster.addresses) if number != cluster.index]
    say(
        f"Worker {cluster.index} of {len(cluster.addresses)} (from 0), waiting for "
        f"{', '.join(others)}."
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ConfigurationError(
            "Several workers must be started before anything else is done with TensorFlow. "
            f"Received: a process that has used it already ({error}). Use a new process."
        ) from error
