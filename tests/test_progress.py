"""Progress in a log: a line every few seconds of work."""

from kdtflite import progress


def test_getting_ready_is_no_step_of_the_work(monkeypatch, capsys):
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
