"""The words of a verdict: what to keep, by how much it is better, how to get it; all of them follow from `Advice`.

What is to be called or given stands as one writes it in Python; the command line writes its options instead.
"""

from __future__ import annotations

from depfuse.evaluate.scores import share_interval
from depfuse.fusion.advice import AVERAGES, Advice, Compared
from depfuse.tasks.scores import ACCURACY, AGREEMENT, Measure
from depfuse.text import counted, short_paths

WIDE = 0.25  # of an interval of a share
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
    keep, images, text = advice.keep, counted(advice.images, "test image"), advice.measure.text
    if keep is None:
        better = (
            f"no network gets more right than {_constant(advice)}"
            if advice.measure == ACCURACY
            else (f"no network has a higher {advice.measure.name} than {_constant(advice)}")
        )
        return (
            f"Keep none of them: of {images}, {better}. Check the data, their labels, the `task`, and `mean` and `std`."
        )
    if keep.what == "child":
        gets = (
            f"of {images} it gets {text(keep.value)} right"
            if advice.measure == ACCURACY
            else (f"on {images} its {advice.measure.name} is {text(keep.value)}")
        )
        return f"Keep {child}: {gets}, {_reasons(advice)}."
    of = "of" if advice.measure == ACCURACY else f"{advice.measure.name} on"
    sentence = f"Keep {_name(keep, advice)} ({text(keep.value)} {of} {images})"
    if advice.instead is not None:
        other = child if advice.instead.what == "child" else _name(advice.instead, advice)
        share = "" if advice.instead.what == "child" else f" ({text(advice.instead.value)})"
        sentence += f" where running {keep.networks} networks is affordable, otherwise {other}{share}"
    return f"{sentence}: {child} reaches {text(advice.child.value)}, {_reasons(advice)}."


def _reasons(advice: Advice) -> str:
    """Compare the child with the best parent and the ensemble, and with an average that is better."""
    rivals = [rival for kind in ("parent", "ensemble") if (rival := advice.best(kind)) is not None]
    relations = [_relation(rival, advice) for rival in rivals]
    average = advice.best(*AVERAGES)
    if average is not None and average.lead < 0:
        relations.append(
            f"below the {_name(average, advice).removeprefix('the ')} ({advice.measure.text(average.value)})"
        )
    trained = advice.best("trained parent")
    if trained is not None and trained.held:
        relations.append(_relation(trained, advice))
    if advice.chance_alone:
        relations.append(f"no better than {_constant(advice, doing=True)}")
    if len(relations) < 2:
        return relations[0] if relations else "alone"
    return f"{', '.join(relations[:-1])} and {relations[-1]}"


def _relation(rival: Compared, advice: Advice) -> str:
    text, points = advice.measure.text, advice.measure.distance(advice.child.value, rival.value)
    name = f"{_name(rival, advice)}"
    share = f" ({text(rival.value)})"
    if rival.what == "parent":
        count = sum(other.what == "parent" for other in advice.rivals)
        name = f"the {'better' if count == 2 else 'best'} parent" if count > 1 else "the parent"
        labels = "" if rival.labels is None else f", which knows {rival.labels} of the labels"
        share = f" ({'' if rival.path is None else f'{_file(rival.path, advice)}, '}{text(rival.value)}{labels})"
    if points == 0:
        return f"level with {name}{share}"
    relation = f"{advice.measure.amount(points)} {'above' if points > 0 else 'below'} {name}{share}"
    if rival.certain:
        return relation
    saved = f", for the cost of one network instead of {rival.networks}" if rival.networks > 1 else ""
    return f"{relation}, which is within the error of so few images{saved}"


def _name(option: Compared, advice: Advice) -> str:
    """Name a network, with its file where it has one."""
    file = None if option.path is None else _file(option.path, advice)
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
        named = _file(files[0], advice) if files and files[0] is not None else option.number
        return f"parent {named} with its head refitted to the ensemble"
    return "the child" if option.what == "child" else "the ensemble that taught the child"


def _file(path: str, advice: Advice) -> str:
    """Name a file as short as tells it from those of the parents."""
    options = [*advice.rivals, *([] if advice.keep is None else [advice.keep])]
    files = dict.fromkeys([path, *(own.path for own in options if own.what == "parent" and own.path is not None)])
    return short_paths(list(files))[0]


def _notes(advice: Advice) -> list[str]:
    """List what else is worth knowing, and how to get a better network that has no file."""
    notes, text = list[str](), advice.measure.text
    if caution := too_few(advice.child.value, advice.images, advice.measure):
        notes.append(caution)
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
            f" {'was' if moved < 2 else 'were'} moved, and {_name(best, advice)} reaches {text(best.value)}."
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
        notes.append(f"{name[0].upper()}{name[1:]} reaches {text(option.value)} but lies in no file; {how}.")
    notes += self_training_notes(advice.self_trained)
    return notes


def too_few(value: float, count: int, measure: Measure) -> str:
    """Caution that a score of so few images hardly tells anything; empty where there are enough.

    They are too few where the 95 % interval of a share of them (Wilson 1927) is wider than a quarter, or where another
    score is that of one image.
    """
    if measure not in (ACCURACY, AGREEMENT):
        return "" if count > 1 else f"A score of {counted(count, 'image')} tells hardly anything of others."
    low, high = share_interval(value, count)
    if high - low <= WIDE:
        return ""
    return (
        f"{counted(count, 'image')} {'tells' if count == 1 else 'tell'} hardly anything: {measure.text(value)} of so"
        f" few stands for {100 * low:.0f} to {100 * high:.0f} % (95 % interval)."
    )


def self_training_notes(kept: bool | None) -> list[str]:
    """Say whether self-training was kept; nothing where there was none."""
    if kept is None:
        return []
    if kept:
        return ["Self-training brought the child nearer to its teacher on held-out training images, and is kept."]
    return [
        "Self-training is not kept: it brought the child no nearer to its teacher on held-out training images, or that"
        " knows too little."
    ]


def _constant(advice: Advice, *, doing: bool = False) -> str:
    """Describe a network of the best constant output, or what it does, with its score."""
    if advice.measure == ACCURACY:
        what = (
            "always predicting the most frequent label" if doing else "one that always predicts the most frequent label"
        )
    else:
        what = "always giving the same output" if doing else "one that always gives the same output"
    return f"{what} ({advice.measure.text(advice.chance)})"
