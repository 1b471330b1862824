"""The words of a verdict: what to keep, by how much it is better, how to get it; all of them follow from `Advice`.

What is to be called or given stands as one writes it in Python; the command line writes its options instead.
"""

from __future__ import annotations

from pathlib import Path

from depfuse.fusion.advice import AVERAGES, Advice, Compared

SOUP = {"average": '`preset("soup")`', "renewed average": '`preset("soup")` with `renorm="reset"`'}


def verdict(advice: Advice, candidate: str | None = None) -> str:
    """Say what to keep and why, in a line.

    Parameters
    ----------
    advice
        From `advise`.
    candidate
        The kind of child, where it is the best of several candidates.
    """
    child = "the child" if candidate is None else f"the child ({candidate})"
    sentences = [_recommendation(advice, child), *_notes(advice)]
    return " ".join(sentences)


def _recommendation(advice: Advice, child: str) -> str:
    keep, images = advice.keep, f"{advice.images:,} test images"
    if keep is None:
        return (
            f"Keep none of them: of {images}, no network gets more right than one that always predicts the most"
            f" frequent label ({_per_cent(advice.chance)}). Check the data, their labels, and `mean` and `std`."
        )
    if keep.what == "child":
        return f"Keep {child}: of {images} it gets {_per_cent(keep.accuracy)} right, {_reasons(advice)}."
    sentence = f"Keep {_name(keep, advice)} ({_per_cent(keep.accuracy)} of {images})"
    if advice.instead is not None:
        other = child if advice.instead.what == "child" else _name(advice.instead, advice)
        share = "" if advice.instead.what == "child" else f" ({_per_cent(advice.instead.accuracy)})"
        sentence += f" where running {keep.networks} networks is affordable, otherwise {other}{share}"
    return f"{sentence}: {child} reaches {_per_cent(advice.child.accuracy)}, {_reasons(advice)}."


def _reasons(advice: Advice) -> str:
    """Compare the child with the best parent and the ensemble, and with an average that is better."""
    rivals = [rival for kind in ("parent", "ensemble") if (rival := advice.best(kind)) is not None]
    relations = [_relation(rival, advice) for rival in rivals]
    average = advice.best(*AVERAGES)
    if average is not None and average.lead < 0:
        relations.append(f"below the {_name(average, advice).removeprefix('the ')} ({_per_cent(average.accuracy)})")
    trained = advice.best("trained parent")
    if trained is not None and trained.held:
        relations.append(_relation(trained, advice))
    if advice.chance_alone:
        relations.append(f"no better than always predicting the most frequent label ({_per_cent(advice.chance)})")
    if len(relations) < 2:
        return relations[0] if relations else "alone"
    return f"{', '.join(relations[:-1])} and {relations[-1]}"


def _relation(rival: Compared, advice: Advice) -> str:
    points = round(round(100 * advice.child.accuracy, 2) - round(100 * rival.accuracy, 2), 2)
    name = f"{_name(rival, advice)}"
    share = f" ({_per_cent(rival.accuracy)})"
    if rival.what == "parent":
        count = sum(other.what == "parent" for other in advice.rivals)
        name = f"the {'better' if count == 2 else 'best'} parent" if count > 1 else "the parent"
        labels = "" if rival.labels is None else f", which knows {rival.labels} of the labels"
        share = f" ({'' if rival.path is None else f'{Path(rival.path).name}, '}{_per_cent(rival.accuracy)}{labels})"
    if points == 0:
        return f"level with {name}{share}"
    relation = f"{abs(points):.2f} points {'above' if points > 0 else 'below'} {name}{share}"
    if rival.certain:
        return relation
    saved = f", for the cost of one network instead of {rival.networks}" if rival.networks > 1 else ""
    return f"{relation}, which is within the error of so few images{saved}"


def _name(option: Compared, advice: Advice) -> str:
    """Name a network, with its file where it has one."""
    file = None if option.path is None else Path(option.path).name
    if option.what == "parent":
        return f"parent {file or option.number}"
    if option.what == "ensemble":
        return f"the ensemble of {'both' if option.networks == 2 else f'all {option.networks}'} parents"
    if option.what == "average":
        return "the naive average"
    if option.what == "renewed average":
        return "the naive average with its BatchNorm reset"
    if option.what == "trained parent":
        return f"the parent trained as long{'' if file is None else f' ({file})'}"
    if option.what == "refitted parent":
        files = [other.path for other in advice.rivals if other.what == "parent" and other.number == option.number]
        named = Path(files[0]).name if files and files[0] is not None else option.number
        return f"parent {named} with its head refitted to the ensemble"
    return "the child" if option.what == "child" else "the ensemble that taught the child"


def _notes(advice: Advice) -> list[str]:
    """List what else is worth knowing, and how to get a better network that has no file."""
    notes = []
    options = [option for option in (advice.keep, advice.instead) if option is not None]
    average = next((option for option in options if option.what in AVERAGES), None)
    if any(option.what == "child" and option.path is None for option in options):
        notes.append("The child lies in no file: `result.save(file)` writes it.")
    if advice.same_start is not None:
        moved, channels = advice.same_start.moved, advice.same_start.channels
        best = advice.best(*AVERAGES)
        assert best is not None
        notes.append(
            f"The parents share a start: {'no channel' if moved == 0 else f'{moved:,} of {channels:,} channels'}"
            f" {'was' if moved < 2 else 'were'} moved, and {_name(best, advice)} reaches {_per_cent(best.accuracy)}."
        )
        average = average or (best if best.lead <= 0 or not best.certain else None)
    if average is not None:
        notes.append(f"{SOUP[average.what]} in place of the other settings writes that average.")
    for option in advice.better:
        how = (
            "`safetensors.torch.save_file(comparison.baseline.network.state_dict(), file)` writes it"
            if option.what == "trained parent"
            else '`preset("best")` looks among such networks'
        )
        name = _name(option, advice)
        notes.append(f"{name[0].upper()}{name[1:]} reaches {_per_cent(option.accuracy)} but lies in no file; {how}.")
    return notes


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f} %"
