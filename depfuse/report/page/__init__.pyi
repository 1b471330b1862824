from .document import build_page, write_page
from .runs import Broken, Run, Runs, find_runs

__all__ = ["Broken", "Run", "Runs", "build_page", "find_runs", "write_page"]
