"""What others may read: settings without keys, passwords and logins."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# Names of things that nobody else may see, and addresses that carry them.
_SECRET = re.compile(r"(?:^|[_.-])(?:api)?(?:key|secrets?|password|credentials?|auth\w*|token)$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]*@|(?<=\w)\?.*", re.DOTALL)
_KEY = re.compile(r"\b(?:sk|hf|ghp|xox[a-z])[-_][\w-]{16,}")


def public(value: Any) -> Any:
    """Settings as plain data, fit for JSON, without what is secret.

    That is everything whose name says so, what looks like a key, and the user's part and the query of an address.
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
