"""Closed-form refit, layer by layer."""
