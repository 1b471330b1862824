"""Declarations of what is measured: sets of parents and changes of the recipe."""
