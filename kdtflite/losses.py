"""The distillation losses: `from kdtflite.losses import SoftTargets`.

The classes live in `kdtflite.distillation.losses`; each is imported when it is first used.
"""

from typing import Any

from kdtflite.distillation import losses as _room

__all__ = _room.__all__
__dir__ = _room.__dir__


def __getattr__(name: str) -> Any:
    return getattr(_room, name)
