"""The files around the code: what a package index, GitHub and an editor read."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
YAML_FILES = sorted(
    [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_files_parse(path):
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_the_workflow_tests_every_python_that_the_metadata_name():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    for job in ("tests", "wheel"):
        assert jobs[job]["strategy"]["matrix"]["python"] == named


def test_every_file_says_the_same_version():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert f"[{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_constraints_pin_each_package_once_for_each_python():
    pins = set()
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r'([\w.-]+)==[\w.]+(?: ; (python_version [<>]=? "3\.1\d"))?', line)
        assert pin, line
        pins.add((re.sub(r"[-_.]+", "-", pin[1].lower()), pin[2]))
    names = [name for name, _ in pins]
    for name in set(names):
        markers = {marker for other, marker in pins if other == name}
        assert len(markers) == 1 or markers == {
            'python_version >= "3.11"',
            'python_version < "3.11"',
        }, name


def test_ruff_of_pre_commit_is_the_one_of_the_constraints():
    (pinned,) = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert f"v{pinned}" in [repo["rev"] for repo in hooks if "ruff" in repo["repo"]]
