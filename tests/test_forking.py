"""Jobs in another process: what they do to themselves reaches nobody else."""

import os
import signal
import sys
import time

import pytest

from kdtflite.forking import ForkServer

MODULE = """
import os, signal, sys, time
from kdtflite.forking import serve

def work(job, content, send):
    print("printed by a library")
    send(content.decode() * job.get("times", 1))
    for _ in range(job.get("messages", 0)):
        send("more")
    if "signal" in job:
        os.kill(os.getpid(), job["signal"])
    if "end" in job:
        os.kill(os.getppid(), job["end"])
        time.sleep(30)
    if "sleep" in job:
        time.sleep(job["sleep"])
    if "fill" in job:
        block = bytearray(b"1") * job["fill"]
        time.sleep(30)
    while job.get("busy"):
        pass
    return job.get("code", 0)

print("the module itself")
print("started late", file=sys.stderr)
serve(work, idle=float(os.environ["IDLE"]), abandon=lambda job: open(job["mark"], "w").close())
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "served_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    server = ForkServer("served_module", lambda: {"IDLE": "60"})
    yield server
    server.stop()


def run(server, content=b"", **job):
    heard = []
    return server.run(job, content, heard.append), heard


def test_each_job_gets_its_own_answers_from_one_process(server):
    outcome, heard = run(server, b"ab", times=2, messages=2)
    assert (outcome.code, outcome.limit, outcome.log) == (0, "", None)
    assert heard == ["abab", "more", "more"]
    assert outcome.memory > 1 << 20
    process = server.pid
    large = b"x" * (1 << 20)  # more than a pipe holds
    outcome, heard = run(server, large, code=3)
    assert (outcome.code, heard) == (3, [large.decode()])
    assert server.pid == process


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_ends_the_job_alone(server, number):
    outcome, heard = run(server, b"first", signal=int(number))
    assert (outcome.code, heard) == (-number, ["first"])
    process = server.pid
    assert run(server, b"second")[1] == ["second"]
    assert server.pid == process


def test_limits_end_a_job_that_works_waits_or_grows(server):
    assert run(server, seconds=1, busy=True)[0].limit == "time"
    started = time.monotonic()
    assert run(server, seconds=0, sleep=30)[0].limit == "time"
    assert run(server, memory=1 << 27, fill=1 << 28)[0].limit == "memory"
    assert time.monotonic() - started < 25  # none of them has slept to its end
    assert run(server, b"after")[1] == ["after"]


def test_a_process_that_ended_between_two_jobs_is_started_again(server):
    run(server)
    process = server.pid
    os.kill(process, signal.SIGKILL)
    assert run(server, b"again")[1] == ["again"]
    assert server.pid != process


def test_a_process_without_jobs_ends_by_itself(server):
    server.change = lambda: {"IDLE": "1"}
    for text in ("one", "two"):
        assert run(server, text.encode())[1] == [text]
        assert server._process.wait(timeout=30) == 0


def test_a_process_that_ends_within_a_job_says_what_it_wrote(server):
    outcome, heard = run(server, b"x", end=int(signal.SIGKILL))
    assert (outcome.code, heard) == (-9, ["x"])
    assert outcome.log.startswith("started late\n")
    assert run(server, b"next")[1] == ["next"]


def test_a_process_that_never_serves_is_no_endless_loop(server, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert (run(server)[0].code, run(server)[0].log) == (1, "")


def test_an_interrupted_job_leaves_no_answer_for_the_next_one(server):
    class Interrupt(BaseException):
        pass

    def listen(value):
        raise Interrupt

    with pytest.raises(Interrupt):
        server.run({"messages": 3}, b"first", listen)
    assert run(server, b"second")[1] == ["second"]


def test_a_fork_has_a_process_of_its_own(server):
    run(server)
    process = server.pid
    child = os.fork()
    if child == 0:
        code = 1
        try:
            alone = server.pid is None
            code = 0 if alone and run(server, b"child")[1] == ["child"] else 2
            server.stop()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run(server, b"parent")[1] == ["parent"]
    assert server.pid == process


def test_a_caller_that_leaves_takes_its_job_along(server, tmp_path):
    mark = tmp_path / "abandoned"
    process = server._start()
    process.stdin.write(f'{{"size": 0, "sleep": 60, "mark": "{mark}"}}\n'.encode())
    process.stdout.readline()
    process.stdin.close()  # as when the caller dies
    assert process.wait(timeout=30) == 0
    assert mark.exists()
