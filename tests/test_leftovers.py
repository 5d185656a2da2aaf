"""Temporary folders go with the process that uses them, and nobody else's are touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kdtflite.files import write_atomically, write_text
from kdtflite.leftovers import make_temporary_folder, sweep_leftovers

ROOT = Path(__file__).parents[1]
pytest.importorskip("fcntl")


def start(script, *arguments):
    """Starts a Python process that prints a line when it is ready, and returns it."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


HOLD = """
    import sys, time
    from pathlib import Path
    from kdtflite.files import write_atomically
    from kdtflite.leftovers import make_temporary_folder
    with (
        make_temporary_folder("convert", parent=Path(sys.argv[1])) as folder,
        write_atomically(Path(sys.argv[1], "a.json")) as temporary,
    ):
        (folder / "samples.npy").touch()
        temporary.touch()
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_folder_of_a_killed_process_is_swept_and_one_in_use_is_not(tmp_path):
    killed, living = start(HOLD, tmp_path), start(HOLD, tmp_path)
    try:
        assert len(names(tmp_path)) == 4
        killed.kill()
        killed.wait()
        assert len(sweep_leftovers(tmp_path)) == 2
        left = list(tmp_path.iterdir())
        assert len(left) == 2
        assert all(any(folder.iterdir()) for folder in left)
        assert sweep_leftovers(tmp_path) == []
    finally:
        living.kill()
        living.wait()
    assert len(sweep_leftovers(tmp_path)) == 2
    assert names(tmp_path) == []


def test_only_our_own_folders_are_swept(tmp_path):
    for name in (
        "kdtflite-scratch-convert",
        "kdtflite-kill-abcdefgh",
        "thesis",
        ".a.json.abcdefgh",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "kdtflite-scratch-convert-abcdefgh").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "kdtflite-scratch-convert-12345678").symlink_to(tmp_path / "elsewhere")
    before = names(tmp_path)
    assert sweep_leftovers(tmp_path) == []
    assert names(tmp_path) == before
    assert sweep_leftovers(tmp_path / "nowhere") == []


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    process = start(HOLD, tmp_path)
    process.kill()
    process.wait()
    write_text(tmp_path / "b.json", "{}")
    assert names(tmp_path) == ["b.json"]


def test_a_folder_goes_with_its_block(tmp_path):
    with make_temporary_folder("convert", parent=tmp_path) as folder:
        (folder / "deep").mkdir()
        assert folder.parent == tmp_path
        assert sweep_leftovers(tmp_path) == []  # it is in use, by this very process
    assert names(tmp_path) == []
    with pytest.raises(KeyError), write_atomically(tmp_path / "x.json"):
        raise KeyError
    assert names(tmp_path) == []


def test_the_files_of_others_go_with_a_killed_process(tmp_path):
    script = """
        import os, signal, tempfile
        from kdtflite.leftovers import collect_temporary_files

        before = tempfile.gettempdir()
        with collect_temporary_files("run"):
            pass
        assert tempfile.gettempdir() == before == os.environ["TMPDIR"]
        with collect_temporary_files("run") as folder:
            descriptor, path = tempfile.mkstemp()
            assert os.path.dirname(path) == str(folder) == os.environ["TMPDIR"]
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert len(sweep_leftovers(tmp_path)) == 1
    assert names(tmp_path) == []


def test_sigterm_ends_the_command_line_as_an_interrupt_does(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        import kdtflite
        from kdtflite.leftovers import make_temporary_folder

        def run(*arguments, **options):
            with make_temporary_folder("convert", parent=Path(path)):
                print("ready", flush=True)
                time.sleep(60)

        path = sys.argv.pop()
        kdtflite.run = run
        sys.argv[0] = "kdtflite"
        sys.argv.append("run")
        sys.argv.append("digits")
        from kdtflite.cli import main
        main()
    """
    process = start(script, tmp_path)
    assert len(names(tmp_path)) == 1
    process.terminate()
    assert process.wait(20) == 143
    assert names(tmp_path) == []
