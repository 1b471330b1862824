"""Rules: the effect of each operation on labels, the only code that knows operations.

DepGraph's nodes say which operation followed which; these rules say which entries it ties. There are three kinds:
*movement* (the same movement is applied to the labels), *entry by entry* (`Ledger.meet`) and *sums* (`Ledger.split`);
matrix products and convolutions are an entry-by-entry product followed by a sum. An operation without a rule pins
everything it touches, with a reason that names it.
"""

from depfuse.groups.labels.rules import entries, joining, movement, products, space, sums
from depfuse.groups.labels.rules.operations import RESHAPES, operation_name
from depfuse.groups.labels.rules.replay import Replay

__all__ = ["RESHAPES", "Replay", "entries", "joining", "movement", "operation_name", "products", "space", "sums"]
