"""Every public name can be reached as an attribute and by `from ... import`."""

import subprocess
import sys
import textwrap

import pytest

SETUP = """
    import importlib, pkgutil, types
    import kdtflite

    def import_all_modules():
        for module in pkgutil.walk_packages(kdtflite.__path__, "kdtflite."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

    def attributes():
        rooms = {name: getattr(kdtflite, name) for name in kdtflite.__all__}
        rooms = {name: room for name, room in rooms.items() if isinstance(room, types.ModuleType)}
        found = {("kdtflite", name): getattr(kdtflite, name) for name in kdtflite.__all__}
        for name, room in rooms.items():
            for public in room.__all__:
                found[f"kdtflite.{name}", public] = getattr(room, public)
        return found

    def imports():
        found = {}
        for module, name in attributes():
            scope = {}
            exec(f"from {module} import {name} as found", scope)
            found[module, name] = scope["found"]
        return found
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("first", ["", "import_all_modules()"], ids=["names", "modules"])
def test_every_public_name_is_the_same_object_both_ways(first):
    lines = run(
        f"""
        {first}
        before = attributes()
        import_all_modules()
        after, imported = attributes(), imports()
        for key, value in before.items():
            assert after[key] is value is imported[key], key
        # A function shares its name with its module in some rooms: users get the function.
        modules = sorted(".".join(k) for k, v in before.items() if isinstance(v, types.ModuleType))
        print(*modules)
        """
    )
    public = [
        "conversion",
        "data",
        "distillation",
        "evaluation",
        "lite",
        "losses",
        "models",
        "pipeline",
        "quantization",
        "reporting",
        "schedules",
        "tasks",
        "teachers",
    ]
    nested = ["distillation.losses", "distillation.schedules", "distillation.teachers"]
    assert lines[-1].split() == sorted(f"kdtflite.{name}" for name in public + nested)


def test_the_namespaces_of_the_readme_are_modules_that_import_no_tensorflow():
    lines = run(
        """
        import sys
        import kdtflite.losses as L, kdtflite.teachers as T, kdtflite.cli
        print("SoftTargets" in dir(L), "EnsembleTeacher" in dir(T), "tensorflow" in sys.modules)
        from kdtflite.losses import SoftTargets
        from kdtflite.teachers import EnsembleTeacher
        from kdtflite.schedules import Cosine
        print(SoftTargets is L.SoftTargets is kdtflite.losses.SoftTargets)
        print(EnsembleTeacher is kdtflite.distillation.teachers.EnsembleTeacher)
        print(Cosine is kdtflite.schedules.Cosine)
        """
    )
    assert lines[-4:] == ["True True False", "True", "True", "True"]
