"""depfuse: fuse independently trained networks into one.

Torch-Pruning's DepGraph finds the coupled channel groups of a network, each group is aligned jointly, the
networks are averaged, and the child's BatchNorm statistics are recomputed.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
