"""Scores of a network's outputs under labels, summed up over batches: one module for each kind of outputs."""
