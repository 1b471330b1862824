"""Built-in networks, and the registry that turns an architecture's name into a network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
