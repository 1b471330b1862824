"""A headless Chromium that shows a page as its readers see it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest


@functools.cache
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium")
    return found


def dom_of(page: Path, *options: str) -> str:
    """A page as the browser has it after its scripts have run."""
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [browser(), "--headless=new", "--disable-gpu", *root, *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def dumped(page: Path, width: int, script: str, *options: str) -> str:
    """A window that shows a page in some width, after the page's scripts and one of ours have run.

    A window cannot be as narrow as a phone; a frame can. Of it, the script has `inside`, its document, and `width`.
    """
    window = page.with_name("window.html")
    window.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>onload = () => { const inside = frames[0].document, width = frames[0].innerWidth;"
        f" {script} }}</script>"
    )
    return dom_of(window, "--allow-file-access-from-files", "--virtual-time-budget=5000", *options)
