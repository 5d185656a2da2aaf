"""kdtflite: from a large Keras teacher to a small, proven full-integer .tflite.

The public names are imported when first used: `import kdtflite` costs milliseconds.
"""

from importlib import metadata

import lazy_loader

from kdtflite.runtime import quiet_tensorflow

try:
    __version__ = metadata.version("kdtflite")
except metadata.PackageNotFoundError:  # a checkout that is not installed (tools/convert.py)
    __version__ = "0+checkout"

# Before anything imports TensorFlow, which reads its verbosity from the environment.
quiet_tensorflow()

# __init__.pyi lists the names and their modules; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
