"""What the rows of the study of coverage say, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch

import pandas as pd

from depfuse.groups.reasons import named
from experiments.lib.tables import markdown

TRANSFORMERS = ("*vit_*", "*swin*", "*deit*")
LEAST_SHARE = {True: 0.90, False: 0.95}  # of the parameters in a free group: transformers, convolutional networks
ENOUGH = 0.95  # of the parameters that reach an output


def summary(rows: pd.DataFrame) -> str:
    """Sum up the rows."""
    timm = rows["library"] == "timm"
    rows = rows.assign(
        family=rows["family"].mask(timm, "timm " + rows["family"]), label=rows["library"] + ":" + rows["name"]
    )
    families = list(rows.groupby("family"))
    parts = [*families, *([("all", rows)] if len(families) > 1 else [])]
    return "\n\n".join([_proofs(parts), _recovered(parts), _shares(rows), _slowest(rows), _failures(rows)])


def _proofs(families: Sequence[tuple[object, pd.DataFrame]]) -> str:
    """How many of each family are proved, and how long that takes."""
    lines = []
    for family, own in families:
        proved, seconds = own[own["status"] == "proved"], own["find_seconds"]
        error, share = proved["proof_error"].max(), 100 * proved["covered_share"].min()
        took = (f"{value:.1f} s" for value in (seconds.median(), seconds.max()))
        lines.append([str(family), f"{len(proved)} of {len(own)}", f"{error:.1e}", f"{share:.1f} %", *took])
    heads = ("family", "proved", "worst error", "least share", "find, median", "find, longest")
    return markdown(heads, lines)


def _recovered(families: Sequence[tuple[object, pd.DataFrame]]) -> str:
    """How much of what reaches an output is in proved groups, and how many permuted copies are recognised."""
    lines = []
    for family, own in families:
        share, tried = own["reached_share"], own["recovered"].dropna()
        if not share.notna().any():
            continue
        took = (f"{own[name].median():.1f} s" for name in ("prove_seconds", "copy_seconds"))
        lines.append([
            str(family),
            f"{(share >= ENOUGH).sum()} of {len(own)}",
            *(f"{100 * value:.1f} %" for value in (share.median(), share.min())),
            f"{tried.sum():.0f} of {len(tried)}",
            *took,
        ])  # fmt: skip
    if not lines:
        return ""
    said = f"Share of the parameters that reach an output which is in proved groups, at least {ENOUGH:.0%} of it:"
    heads = ("family", "enough", "median share", "least share", "copies recovered", "prove, median", "fuse, median")
    return f"{said}\n\n{markdown(heads, lines)}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _shares(rows: pd.DataFrame) -> str:
    rows = rows.assign(
        least=[LEAST_SHARE[any(fnmatch(name, of) for of in TRANSFORMERS)] for name in rows["name"]],
        share=rows["reached_share"].fillna(rows["covered_share"]),
    )
    low = [
        f"{row['label']} {100 * row['share']:.1f} % (at least {100 * row['least']:.0f} %)"
        for row in rows[rows["share"] < rows["least"]].to_dict("records")
    ]
    return f"Share of parameters in a free group too low: {len(low)}\n\n{_listed(low)}".rstrip()


def _slowest(rows: pd.DataFrame) -> str:
    timed = rows.dropna(subset=["find_seconds", "pass_seconds"]).sort_values("find_seconds", ascending=False)
    slow = timed["label"][timed["find_seconds"] > 1.0 + 10.0 * timed["pass_seconds"]]
    lines = [
        f"{row['label']}: {row['find_seconds']:.3f} s, one pass {row['pass_seconds']:.3f} s,"
        f" proof {row['prove_seconds']:.3f} s"
        for row in timed.head(10).to_dict("records")
    ]
    return f"Slowest to find:\n\n{_listed(lines)}\n\nBeyond 1 s and ten passes: {', '.join(slow) or 'none'}"


def _failures(rows: pd.DataFrame) -> str:
    failed = rows[rows["status"] != "proved"]
    failed = failed.assign(why=[_kinds(row["status"], row["refused"]) for row in failed.to_dict("records")])
    kinds = [(*kind, list(own["label"])) for kind, own in failed.groupby(["status", "why"])]
    lines = [
        f"{status}: {why or 'no reason'} — {named(names, 6)}"
        for status, why, names in sorted(kinds, key=lambda kind: (kind[0], -len(kind[2])))
    ]
    return f"Not proved: {len(failed)}\n\n{_listed(lines)}".rstrip()


def _kinds(status: str, why: str) -> str:
    """What `why` says, without the places: equal for networks that fail in the same way."""
    if status != "refused":
        return why
    reasons = re.findall(r" \(((?:[^()]|\(\))*)\)(?:; |$)", why) or [why]
    kinds = (re.sub(r"\d+(\.\d+)?e[+-]\d+", "...", re.sub(r" in (the network itself|\S+)", "", r)) for r in reasons)
    return "; ".join(dict.fromkeys(kinds))
