"""Natural-gradient steps of all layers together."""
