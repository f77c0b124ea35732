"""Remove secrets from settings, so that others may read them."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# Names of secrets, and parts of addresses that can hold them.
_SECRET = re.compile(r"(?:^|[_.-])(?:api)?(?:key|secrets?|password|credentials?|auth\w*|token|headers)$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]*@|(?<=\w)\?.*", re.DOTALL)
_KEY = re.compile(r"\b(?:sk|hf|ghp|xox[a-z])[-_][\w-]{16,}")


def public(value: Any) -> Any:
    """Convert settings to JSON values without secrets.

    Removed are values with secret-like names, texts that look like keys, and the user and query parts of addresses.
    """
    if isinstance(value, BaseModel):
        return public(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(name): public(item) for name, item in value.items() if not _SECRET.search(str(name))}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _KEY.sub("(a key)", str(value))
    return _LOGIN.sub("", text) if "://" in text else text
