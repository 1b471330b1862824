"""Seconds and memory, alone and beside other packages."""
