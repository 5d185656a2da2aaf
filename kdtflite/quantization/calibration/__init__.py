"""How a range is chosen from the values of a calibration pass, one method per file."""

import lazy_loader

# Names and their modules stand in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
