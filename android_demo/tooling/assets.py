"""The model that comes with the app, and its golden vectors."""

from __future__ import annotations

from pathlib import Path

from tooling.steps import BuildError

__all__ = ["write_assets"]

SAMPLES = 128


def write_assets(model: Path, golden: Path | None, folder: Path) -> None:
    """Writes `model.tflite`, `model.txt` (its name) and `golden.json` into a folder.

    Args:
        model: The `.tflite`.
        golden: Its golden vectors, written by `kdtflite golden`. None makes
            them from random inputs.
        folder: The target folder.

    Raises:
        BuildError: The file does not exist or is not a model, or the vectors belong to another
            model.
    """
    import hashlib
    import json

    from kdtflite import KdtfliteError, golden_vectors
    from kdtflite.lite.model import LiteModel

    if not model.is_file():
        raise BuildError(
            f"Expected a .tflite file. Received: {model}, where there is no file. Make one with "
            "'kdtflite run mnist', or omit MODEL to use the one that comes with the project."
        )
    try:
        lite = LiteModel.load(model)
        if golden is None:
            text = json.dumps(golden_vectors(lite, samples=SAMPLES, name=model.name).to_dict())
        else:
            text = golden.read_text(encoding="utf-8")
            if json.loads(text)["model"]["sha256"] != hashlib.sha256(lite.content).hexdigest():
                raise BuildError(
                    f"Expected golden vectors of {model}. Received: {golden}, which belong to a "
                    f"file with other bytes. Write them again: kdtflite golden {model} -o {golden}"
                )
    except KdtfliteError as refused:
        raise BuildError(f"{model} cannot come with the app. {refused}") from refused
    except (OSError, ValueError, LookupError, TypeError) as broken:
        raise BuildError(
            f"Expected golden vectors written by 'kdtflite golden'. Received: {golden}, which "
            f"cannot be read as such ({broken})."
        ) from broken
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(lite.content)
    (folder / "model.txt").write_text(model.name + "\n", encoding="utf-8")
    (folder / "golden.json").write_text(text, encoding="utf-8")
