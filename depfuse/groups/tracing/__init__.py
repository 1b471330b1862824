"""Trace a network: DepGraph, and what it does not say."""
