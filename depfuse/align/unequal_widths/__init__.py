"""Alignment of networks of unequal widths."""
