"""Checkpoints, foreign pickles, output files."""
