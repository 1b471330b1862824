"""Combine the parents into one ensemble: label sets and outputs."""
