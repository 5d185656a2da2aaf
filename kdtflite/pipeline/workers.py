"""The processes and devices that train together, and what they must agree upon."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kdtflite.errors import ConfigurationError, DataError, KdtfliteError, choose
from kdtflite.pipeline.cluster import Cluster, cluster_of_environment
from kdtflite.progress import say

__all__ = ["ALONE", "STRATEGIES", "Workers"]

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")

T = TypeVar("T")

# What a network file system may take to show one machine what another wrote.
_SECONDS_UNTIL_SEEN = 60.0


class Workers:
    """This process and those that it trains with; alone it changes nothing at all.

    Every process does the same work in the same order where it trains; only the chief writes into
    the run's folder, converts and measures, and the others wait for it. They wait in collective
    operations, as in training: that one of them died is found out in the same way everywhere.

    Args:
        strategy: One of `STRATEGIES`. "auto" takes the workers of TF_CONFIG, else all GPUs of
            this machine if there are several, else the one device.

    Raises:
        ConfigurationError: No such strategy, or TF_CONFIG does not fit it.
    """

    def __init__(self, strategy: str = "none") -> None:
        self._wanted = choose(strategy, STRATEGIES, what="strategy")
        self._cluster: Cluster | None = None
        if strategy in ("auto", "multi_worker"):
            self._cluster = cluster_of_environment()
        if strategy == "multi_worker" and self._cluster is None:
            raise ConfigurationError(
                "The strategy multi_worker needs several workers. Expected the environment "
                "variable TF_CONFIG to name them. Received: TF_CONFIG="
                f"{os.environ.get('TF_CONFIG', '')!r}. docs/scale.md shows how to start two."
            )

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self._cluster is not None

    @property
    def chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self._cluster is None or self._cluster.index == 0

    def start(self) -> None:
        """Waits for the other processes; nothing may be done with TensorFlow before.

        Raises:
            ConfigurationError: Something was.
        """
        if self._cluster is not None:
            _multi_worker(self._cluster)

    @functools.cached_property
    def strategy(self) -> Any:
        """The tf.distribute strategy, or None for a single device."""
        if self._cluster is not None:
            return _multi_worker(self._cluster)
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
                "Use --strategy none, or auto, which takes what there is."
            )
        say(f"Training on {len(devices)} devices of this machine.")
        return tf.distribute.MirroredStrategy(devices)

    @contextlib.contextmanager
    def together(self, folder: Path) -> Iterator[None]:
        """Says which worker is gone if one dies while the block runs.

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
            gone = self._cluster.gone()
            if not gone and not isinstance(error, tf.errors.UnavailableError):
                raise
            named = " and ".join(gone) or "another worker"
            raise KdtfliteError(
                f"The training stopped, because {named} died or cannot be reached. The last "
                f"checkpoint in {folder} is whole: start all workers again with the same command, "
                "and the run goes on from it."
            ) from error
        finally:
            # What only this process wrote.
            if "_scratch" in self.__dict__:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models that train together are built and trained."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def synchronized(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which `model` trains as on one device, batches in parts or not."""
        if self.strategy is None:
            return contextlib.nullcontext()
        from kdtflite.pipeline.synchronized import synchronized

        return synchronized(model)

    def shared(self, batches: Any) -> Any:
        """Returns the same batches, of which every worker takes its rows."""
        if not self.several:
            return batches
        import tensorflow as tf

        options = tf.data.Options()
        # Not by files: every worker makes the same whole batches, and the same parts of them.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return batches.with_options(options)

    def agreed(self, value: int) -> int:
        """Returns the chief's value in every process, once all of them have come here."""
        if not self.several:
            return value
        import tensorflow as tf

        def of_replica(context: Any) -> tf.Tensor:
            first = context.replica_id_in_sync_group == 0
            return tf.constant(value if first else 0, tf.int64)

        values = self.strategy.experimental_distribute_values_from_function(of_replica)
        return int(self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))

    def check_same(self, text: str) -> None:
        """Refuses a process that was started for something else than the chief.

        Raises:
            ConfigurationError: `text` is not the chief's.
        """
        digest = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        if self.agreed(digest) != digest:
            raise ConfigurationError(
                "This worker was started with another recipe than the chief. Expected the same "
                "command on all workers, the same paths included. Start all of them again."
            )

    def seen(self, read: Callable[[], T | None], what: str) -> T:
        """Returns what `read` finds of what the chief wrote, as soon as it is there.

        Raises:
            DataError: It does not turn up.
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

    def own(self, folder: Path) -> Path:
        """Returns where this process writes what the chief writes into `folder`.

        Saving a model is work for all workers: statistics that each of them holds a part of are
        brought together by it. What others than the chief save is thrown away.
        """
        return folder if self.chief else self._scratch / folder.name

    @functools.cached_property
    def _scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="kdtflite-worker-"))


ALONE = Workers()
"""A single process on a single device."""


@functools.cache
def _multi_worker(cluster: Cluster) -> Any:
    """Starts the cluster, which TensorFlow does once in a process."""
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
