"""Recipe files of mergekit, whose words are told in ours."""

from __future__ import annotations

from typing import Any

from depfuse.errors import RecipeError

_OURS = {
    "models": "parents, a list of files or folders",
    "slices": "not needed: whole networks are fused",
    "modules": "not needed: whole networks are fused",
    "merge_method": "preset, such as soup for linear (`depfuse recipes` lists all)",
    "base_model": "not needed: parents need no common start",
    "parameters": "settings, such as merge: {weights: [0.7, 0.3]}",
    "dtype": "not needed: the child has the type of its first parent",
    "out_dtype": "not needed: the child has the type of its first parent",
    "tokenizer_source": "not needed: there is no tokenizer",
    "tokenizer": "not needed: there is no tokenizer",
    "chat_template": "not needed: there is no tokenizer",
}
_CERTAIN = frozenset({"models", "slices", "modules", "merge_method", "base_model"})


def check_words(source: str, content: Any) -> None:
    """Raise `RecipeError` for a file that is written for mergekit; its entries are named, and what they are here."""
    if not isinstance(content, dict) or not _CERTAIN & content.keys():
        return
    told = "; ".join(f"{word} is {_OURS[word]}" for word in _OURS if word in content)
    raise RecipeError(f"{source} is written for mergekit, whose words differ here: {told}")
