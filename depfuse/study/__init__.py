"""Searches over recipes, with Optuna."""
