"""Data sets as splits of arrays: embedded, downloaded, or a user's own files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtflite.data.files import Arrays, load_arrays, load_user_dataset
    from kdtflite.data.images import load_image_folder
    from kdtflite.data.named import load_dataset
    from kdtflite.data.sources import load
    from kdtflite.data.splits import Dataset, Split, as_labels, stratified_split

__all__ = [
    "Arrays",
    "Dataset",
    "Split",
    "as_labels",
    "load",
    "load_arrays",
    "load_dataset",
    "load_image_folder",
    "load_user_dataset",
    "stratified_split",
]

_HOMES = {
    "Arrays": "files",
    "Dataset": "splits",
    "Split": "splits",
    "as_labels": "splits",
    "load": "sources",
    "load_arrays": "files",
    "load_dataset": "named",
    "load_image_folder": "images",
    "load_user_dataset": "files",
    "stratified_split": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
