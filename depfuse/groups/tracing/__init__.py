"""Tracing of a network by DepGraph, with what DepGraph does not record."""
