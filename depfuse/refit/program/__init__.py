"""Decomposition of a network into operations and units that can be refitted."""
