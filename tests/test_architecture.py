"""The modules of the package import each other in one direction."""

import graphlib

import grimp

TEACHERS = "kdtflite.distillation.teachers"


def test_no_modules_import_each_other_but_the_teachers():
    graph = grimp.build_graph("kdtflite", exclude_type_checking_imports=True, cache_dir=None)
    # True recursion: a list of teachers is a teacher.
    graph.remove_import(importer=f"{TEACHERS}.resolve", imported=f"{TEACHERS}.ensemble")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    graphlib.TopologicalSorter(imports).prepare()  # its CycleError names the circle
