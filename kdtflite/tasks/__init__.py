"""What a model's outputs mean: how labels are read, and which figures say how good it is."""

import lazy_loader

# Names and their modules stand in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
