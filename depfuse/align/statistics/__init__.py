"""Streaming moments of activations."""
