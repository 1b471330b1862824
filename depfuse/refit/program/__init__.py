"""A network taken apart into operations and units that can be refitted."""
