"""The families of timm's classifiers that the study of coverage goes through, by patterns of names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from depfuse.errors import RecipeError

FAMILIES = {
    "resnet": ["resnet*", "wide_resnet*", "nf_resnet*"],
    "resnext": ["resnext*"],
    "seresnet": ["seresnet*", "seresnext*", "legacy_seresne?t*", "nf_seresnet*"],
    "ecaresnet": ["ecaresnet*", "ecaresnext*", "eca_resne?t*", "nf_ecaresnet*"],
    "skresnet": ["skresnet*", "skresnext*"],
    "res2net": ["res2net*", "res2next*"],
    "regnet": ["regnet*", "nf_regnet*"],
    "densenet": ["densenet*"],
    "dla": ["dla*"],
    "hrnet": ["hrnet*"],
    "vgg": ["vgg*", "repvgg*"],
    "mobilenet": ["mobilenet*", "tf_mobilenet*"],
    "efficientnet": ["efficientnet*", "tf_efficientnet*"],
    "mnasnet": ["mnasnet*", "semnasnet*", "spnasnet*"],
    "ghostnet": ["ghostnet*"],
    "rexnet": ["rexnet*"],
    "convnext": ["convnext*"],
    "nfnet": ["nfnet*", "dm_nfnet*", "eca_nfnet*"],
    "cspnet": ["csp*", "cs3*", "darknet*", "sedarknet*"],
    "inception": ["inception*"],
    "xception": ["xception*", "legacy_xception*"],
    "dpn": ["dpn*"],
    "selecsls": ["selecsls*"],
    "vit": ["vit_tiny*", "vit_xsmall*", "vit_small*"],
    "deit": ["deit_tiny*", "deit_small*", "deit3_small*"],
    "swin": ["swin_tiny*", "swin_small*", "swin_s3_tiny*", "swin_s3_small*", "swinv2_tiny*", "swinv2_small*",
             "swinv2_cr_tiny*", "swinv2_cr_small*"],
}  # fmt: skip


def names_of(families: Sequence[str]) -> dict[str, str]:
    """Map the names of some families' networks to their family; `RecipeError` where timm is not installed."""
    found: dict[str, str] = {}
    names = _names()
    for family in families:
        for name in names:
            if any(fnmatch(name, pattern) for pattern in FAMILIES[family]):
                found.setdefault(name, family)
    return found


def _names() -> list[str]:
    try:
        import timm
    except ImportError:
        raise RecipeError(
            "timm's networks need timm, which is not installed: pip install 'depfuse[timm]', or --library torchvision"
        ) from None
    return list(timm.list_models())
