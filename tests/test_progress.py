"""Progress in a log: one line every few seconds of work."""

from kdtflite import progress


def test_preparation_does_not_count_as_work(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def samples():
        clock[0] = 60.0  # a process starts
        for _ in range(4):
            yield None
            clock[0] += 3.0

    assert len(list(progress.track(samples(), "Calibrating", total=4))) == 4
    # The third sample is worked on until 6 s after the first came.
    assert capsys.readouterr().err == "Calibrating: 3 of 4\n"


def test_what_is_only_tried_says_nothing(tmp_path, capsys):
    with progress.log_to(tmp_path / "log.txt"):
        with progress.mute(), progress.mute():
            progress.say("tried")
        progress.say("kept")
    assert capsys.readouterr().err == "kept\n"
    assert "tried" not in (tmp_path / "log.txt").read_text()
