"""Weight and spectral norm by the names of torch's old functions and of its parametrisations.

Both are the same function of the same tensors: `weight_g`, `weight_v` are the originals 0 and 1 of a weight norm;
`weight_orig`, `weight_u`, `weight_v` are the original of a spectral norm and its singular vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from depfuse.io.weights import Place

_NORMS = (
    {"_g": "original0", "_v": "original1"},
    {"_orig": "original", "_u": "0._u", "_v": "0._v"},
)
_NEW = "parametrizations"


def with_norms_of(target: Mapping[str, Tensor], top: Place) -> Place:
    """Rename weight and spectral norms of a file as the network has them, in a copy of the tree.

    Torch: `torch.nn.utils.parametrizations.weight_norm` reads the old names in the same way.
    """
    is_new = any(_NEW in key.split(".") for key in target)
    is_old = any(key.endswith(("_g", "_orig")) for key in target)
    if not (is_new or is_old):
        return top
    return _renamed(top, None, to_new=is_new)


def _renamed(place: Place, above: Place | None, *, to_new: bool) -> Place:
    made = Place(place.name, above, place.tensor, is_whole=place.is_whole, is_named=place.is_named)
    made.parts = {name: _renamed(part, made, to_new=to_new) for name, part in place.parts.items()}
    if to_new:
        _to_new(made)
    elif _NEW in made.parts:
        _to_old(made)
    return made


def _to_new(place: Place) -> None:
    for norm in _NORMS:
        mark = next(iter(norm))
        for name in [part.removesuffix(mark) for part in place.parts if part.endswith(mark)]:
            old = [name + ending for ending in norm]
            if all(part in place.parts and not place.parts[part].parts for part in old):
                for part, new in zip(old, norm.values(), strict=True):
                    place.put(f"{_NEW}.{name}.{new}").tensor = place.parts.pop(part).tensor


def _to_old(place: Place) -> None:
    parametrised = place.parts[_NEW]
    for name, of in list(parametrised.parts.items()):
        for norm in _NORMS:
            tensors = [of.at(new) for new in norm.values()]
            if all(part is not None and part.tensor is not None for part in tensors):
                for part, ending in zip(tensors, norm, strict=True):
                    assert part is not None
                    place.put(name + ending).tensor = part.tensor
                del parametrised.parts[name]
                break
    if not parametrised.parts:
        del place.parts[_NEW]
