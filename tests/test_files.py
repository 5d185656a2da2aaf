"""Files and folders are written whole or not at all."""

import hashlib
import json
import os

import pytest

from kdtflite.errors import KdtfliteError, OutputExistsError
from kdtflite.files import (
    read_json,
    refuse_existing,
    sha256,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"\0" * 9, b"[" * 100_000])
def test_a_missing_or_damaged_json_file_has_no_value(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None
    write_json(path, {"a": [1, None]}, overwrite=True)
    assert read_json(path) == {"a": [1, None]}
    assert read_json(tmp_path) is None  # a folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_is_done(tmp_path):
    target = tmp_path / "new" / "model.bin"
    with write_atomically(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent.parent == target.parent  # the same disk: the rename is atomic
    assert target.read_bytes() == b"half"
    assert names(target.parent) == ["model.bin"]


def test_a_folder_appears_when_the_block_is_done_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "run"
    for content in ("one", "two"):
        with write_atomically(target, overwrite=True) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
        assert names(target) == [content]
        assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error, kind):
    target = tmp_path / "model.bin"
    target.write_text("old")
    raised = KdtfliteError if error is OSError else error
    with pytest.raises(raised), write_atomically(target, overwrite=True) as temporary:  # noqa: PT012
        if kind == "file":
            temporary.write_text("half of the ne")
        else:
            temporary.mkdir()
            (temporary / "part").touch()
        raise error("disk")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["model.bin"]


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()

    def fails(self, to):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(target), "replace", fails)
    with (
        pytest.raises(KdtfliteError, match="No space left"),
        write_atomically(target, overwrite=True) as temporary,
    ):
        temporary.mkdir()
    assert names(target) == ["old"]


def test_nothing_is_overwritten_without_permission(tmp_path):
    target = tmp_path / "model.bin"
    target.write_text("old")
    ran = []
    with pytest.raises(OutputExistsError, match=r"exists already\. Pass --force"):  # noqa: SIM117
        with write_atomically(target, option="--force"):
            ran.append(True)
    assert not ran
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        write_bytes(target, b"new")
    assert target.read_text() == "old"
    write_bytes(target, b"new", overwrite=True)
    assert target.read_bytes() == b"new"
    with pytest.raises(OutputExistsError):
        refuse_existing(target, overwrite=False, option="overwrite=True")
    assert refuse_existing(str(target), overwrite=True, option="") == target


def test_a_place_where_nothing_can_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KdtfliteError, match=r"Could not write .*Nothing was written there"):
        write_text(tmp_path / "file" / "model.txt", "text")
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    target = tmp_path / "model.bin"
    with (  # noqa: PT012
        pytest.raises(KdtfliteError, match="No space left on device"),
        write_atomically(target) as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"data")
    assert names(tmp_path) == []


def test_text_json_and_digests(tmp_path):
    write_text(tmp_path / "a.txt", "Grüße\n")
    assert (tmp_path / "a.txt").read_bytes() == "Grüße\n".encode()
    write_json(tmp_path / "a.json", {"b": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2.5]}
    assert sha256(tmp_path / "a.txt") == hashlib.sha256("Grüße\n".encode()).hexdigest()
