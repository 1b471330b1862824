"""One HTML page from any set of reports, complete in itself: nothing on it comes from anywhere else."""

from depfuse.report.page.document import build_page, write_page
from depfuse.report.page.runs import Broken, Run, Runs, find_runs

__all__ = ["Broken", "Run", "Runs", "build_page", "find_runs", "write_page"]
