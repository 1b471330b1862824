"""One HTML page from any set of reports, complete in itself: nothing on it comes from anywhere else."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
