import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_killed_in_every_stage_ends_with_the_file_of_an_undisturbed_run():
    command = [sys.executable, "benchmarks/kill_and_resume.py", "tests/tiny.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"stage (\d) killed", result.stdout) == list("123456789")
    assert "stage 5 killed after epoch 2" in result.stdout
    undisturbed, killed = re.findall(r"[0-9a-f]{64}", result.stdout)
    assert undisturbed == killed
