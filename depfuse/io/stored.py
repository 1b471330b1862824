"""Plain data that files hold: cards, reports, studies. Nothing here needs torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from depfuse.text import storable


class Stored(BaseModel):
    """Base of data in files: frozen, with text that JSON can hold; fields that later versions add are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    _storable = model_validator(mode="before")(storable)
