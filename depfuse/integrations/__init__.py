"""Other people's tools around a fusion; each is imported by its own module alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
