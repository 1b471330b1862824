"""Progress of long work: loops say how far they are, and whoever watches shows it; by default nobody does.

Shown are the current step, how far it is where its parts are counted, and for how long it will go on at that pace: as
a bar in a terminal, below the cell of a notebook, and as a line every 30 seconds where standard error is no terminal.
What will take over a minute is foretold in a sentence, with what would be quicker: before it begins where its cost is
known, and else after its first seconds, from their pace.
"""

from depfuse.progress.naming import name, named, part
from depfuse.progress.steps import Work
from depfuse.progress.watching import ProgressLike, shown, unseen, work
from depfuse.progress.words import wording

__all__ = ["ProgressLike", "Work", "name", "named", "part", "shown", "unseen", "wording", "work"]
