"""The command line: thin, and the only room that prints."""

from depfuse.cli.app import main

__all__ = ["main"]
