"""The teachers: `from kdtflite.teachers import EnsembleTeacher`.

The classes live in `kdtflite.distillation.teachers`; each is imported when it is first used.
"""

from typing import Any

from kdtflite.distillation import teachers as _room

__all__ = _room.__all__
__dir__ = _room.__dir__


def __getattr__(name: str) -> Any:
    return getattr(_room, name)
