"""What each output of a run was made from, by content: what is left from an earlier run shows in the report."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from pydantic import BaseModel

from rebase.records import Adapter

#: By catalog entry: the digest of its content (None: not measured) and those of the inputs that it was made from.
Origins = Mapping[str, Mapping[str, Any]]

#: Pieces that are compared with another one: with other settings or items they do not compare.
_COMPARED_WITH = {"comparison_scores": "scores", "curves": "scores", "comparison": "scores"}


def describe_origin(output: Any, inputs: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """The ``content`` of a node's output, and what it was ``made_from``: the content of each of its inputs.

    An input that another node wrote has the content that was recorded for it; others (parameters, the task) are
    measured. Free inputs without content, such as handles of models, are left out.
    """
    made_from = {name: origins[name]["content"] if name in origins else digest(data) for name, data in inputs.items()}
    made_from = {name: content for name, content in made_from.items() if content or name in origins}
    return {"content": digest(output), "made_from": made_from}


def unsaved_origin(name: str) -> dict[str, Any]:
    """The origin of an output until it is saved: ``find_outdated`` always finds it, because a killed run leaves it."""
    return {"content": "", "made_from": {name: None}}


def find_outdated(origins: Origins, names: Collection[str]) -> list[str]:
    """The ``names`` that were made from, or are compared with, content that has changed since."""

    def is_outdated(name: str) -> bool:
        made_from = origins.get(name, {}).get("made_from", {})
        return any(
            source in origins and (origins[source]["content"] != content or is_outdated(source))
            for source, content in made_from.items()
        )

    def differs(name: str, other: str) -> bool:
        one, another = (origins.get(piece, {}).get("made_from", {}) for piece in (name, other))
        return any(one[source] != another[source] for source in one.keys() & another.keys())

    return [
        name for name in names if is_outdated(name) or (name in _COMPARED_WITH and differs(name, _COMPARED_WITH[name]))
    ]


def digest(content: Any) -> str | None:
    """The SHA-256 of a table, an adapter's weights, or a validated record; None for anything else.

    Summaries and scores have times and versions in them, which change without a change of content.
    """
    if isinstance(content, Adapter):
        files = sorted(content.folder.glob("adapter_*"))
        return _hash(b"".join(file.read_bytes() for file in files))
    if isinstance(content, pd.DataFrame):
        return _hash(content.to_csv(index=False))
    if isinstance(content, BaseModel):
        return _hash(json.dumps(content.model_dump(mode="json"), sort_keys=True))
    return None


def _hash(content: str | bytes) -> str:
    # A lone surrogate can come from a parameter; a table with one cannot be saved.
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()
