"""Numbers of networks on a path between two parents, both included."""

POINTS_OF_A_PLOT = 11
REFITTED_POINTS = 5  # where the child is refitted: on a path, each takes as long as the child
