"""The project's words: plain American English, and functions that are verbs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kdtflite", "docs", "benchmarks", "tools", "android_demo", "notebooks")
SUFFIXES = {".py", ".pyi", ".md", ".kt", ".yaml", ".j2", ".xml", ".ipynb", ".c", ".kts"}
# Generated, built, or third-party.
SKIPPED = re.compile(r"/(_generated|build|__pycache__|\.\w+)/")
TEXTS = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in SUFFIXES and not SKIPPED.search(path.as_posix())
)
TEXTS += [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")]
# Sentences are plain in the tests too. This file quotes what it looks for.
SENTENCES = TEXTS + sorted(
    path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve()
)
# The changelog's table of renamed names quotes what they were.
QUOTED = re.compile(r"<!-- names -->.*?<!-- end of names -->", re.DOTALL)

UNITS = (
    "batch|channel|class|column|core|device|element|epoch|file|image|invoke|layer|line|module|"
    "neuron|pixel|position|process|replica|row|sample|second|seed|side|step|task|tensor|token|"
    "training|way|weight|worker"
)
COUNTED = (
    "bytes|cases|classes|epochs|files|gradients|images|lines|losses|milliseconds|numbers|outputs|"
    "parameters|points|ranges|rows|samples|scales|seconds|steps|tokens|values|views|weights"
)
LINKS = "after|as|at|by|for|from|if|in|is|of|on|or|than|to|when|where|with|without"
# In quotation marks: `labelled`, the word that a recipe takes in place of `labeled`.
PHRASES = {
    "per": rf"\b(?:one|two|three|an?|\d+(?:[,.]\d+)*) (?!(?:{LINKS})\b)[\w-]+ an? (?:{UNITS})\b|"
    rf"\b(?:{COUNTED}|one|ms) an? (?:{UNITS})\b",
    "is not, has no, there is no": r"(?<!there )\b(?:is|are|was|were) none\b(?! of)",
    "a message says": r"\b(?:it|that|this|which) (?:is|are) said\b|\bis said to\b",
    "a plain word": r"\b(?:the|every|this|that|at) door\b|\bgo(?:ne|es|ing)? on with\b|"
    r"\bnot to be had\b|\bnone of these is\b|\btells by\b|\bwhat it is told\b|\bas told\b",
    "American spelling": r"(?i)(?:normalis|quantis|optimis|initialis|regularis|standardis|"
    r"recognis|minimis|maximis|serialis|generalis|summaris|synchronis|(?<![\"(])centr(?:e[sd]?|ing)\b|"
    r"colour|\bgrey|behaviour|neighbour|favour|honour|(?<![\"'`])(?<!\"un)labell(?:ed(?!by)|ing)|modell(?:ed|ing)|"
    r"cancell(?:ed(?!Error)|ing)|travell|\blicence|\bartefact|\bdistil(?:s|)\b|analys(?:e[sd]?|ing)\b|"
    r"catalogue|programme\b|learnt|spelt\b|whilst|amongst)",
}


@pytest.mark.parametrize("advice", PHRASES)
def test_sentences_are_plain(advice):
    pattern = re.compile(PHRASES[advice])
    found = []
    for path in SENTENCES:
        text = QUOTED.sub("", path.read_text("utf-8"))
        if path.suffix == ".j2":
            text = re.sub(r"\{[%{].*?[%}]\}", "", text)  # "is none" is Jinja's own test
        # A sentence may go over the end of a line.
        joined = re.sub(r"\n\s*(?:#|//|\*)? ?", lambda end: " " * len(end[0]), text)
        for match in pattern.finditer(re.sub(r"(?<=\S) +(?=\S)", " ", joined)):
            found.append(f"{path.relative_to(ROOT)}: {match[0]!r}")
    assert not found, f"Write this with: {advice}\n" + "\n".join(found)


# Nouns, adjectives and verbs that only look like participles.
NOT_PARTICIPLES = {
    *("embed", "feed", "need", "proceed", "read", "seed", "shed", "speed", "spread"),
    *("bring", "ring", "sing", "string", "swing", "spring"),
    *("even", "flatten", "harden", "listen", "open", "token", "train", "widen", "shorten"),
    *("broaden", "coarsen", "tighten", "children"),
    *("lengthen", "sharpen", "loosen", "happen", "deepen", "strengthen", "weaken", "screen"),
    # Adjectives in the field's names: `golden_vectors`, `mixed_precision`, `learning_rate`.
    *("embedding", "padding", "smoothing", "mixing", "training", "golden", "mixed", "stratified"),
    *("squared", "learning", "hidden"),
}
PAST_TENSES = {"told", "said", "held", "made", "kept", "taught", "left", "begun", "sent", "found"}
PAST_TENSES |= {"gone", "done", "met", "lost", "built", "shown", "ran", "drawn"}


def is_participle(name):
    first = name.strip("_").split("_")[0]
    if first in NOT_PARTICIPLES or name.startswith("__"):
        return False
    return first in PAST_TENSES or bool(re.fullmatch(r"\w{2,}(?:ed|ing|en)", first))


def is_property(function):
    names = {ast.unparse(decorator).split(".")[-1] for decorator in function.decorator_list}
    return bool(names & {"property", "cached_property", "setter", "fixture"})


def python_files():
    return [path for path in TEXTS if path.suffix == ".py"]


def test_functions_are_verbs():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and not is_property(node) and is_participle(node.name)
    ]
    assert not found, "Name these functions by verbs:\n" + "\n".join(found)


def test_functions_do_not_shadow_imports():
    found = []
    for path in python_files():
        module = ast.parse(path.read_text("utf-8"))
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in module.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        # A method is an attribute of its class and shadows nothing.
        methods = {
            id(item)
            for node in ast.walk(module)
            if isinstance(node, ast.ClassDef)
            for item in node.body
        }
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef)
            and id(node) not in methods
            and node.name in imported
        ]
    assert not found, "These functions hide an import:\n" + "\n".join(found)


def test_the_rules_find_what_they_should():
    assert re.search(PHRASES["per"], "a table with one row a class")
    assert re.search(PHRASES["per"], "images a second")
    assert not re.search(PHRASES["per"], "writes a file. A sample is a row")
    assert is_participle("rewritten")
    assert is_participle("_said")
    assert not is_participle("open_file")
    assert not is_participle("embed")
