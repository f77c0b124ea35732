"""Retrieval-based distillation: a task and three examples in, a small expert model out."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebase.serving.expert import Expert as Expert

# Its warning suggests a kernel from the hub, which rebase does not use. Workers and notebooks have no conf/logging.yml.
logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``Expert`` when it is needed: it imports what all other modules of the package may not wait for."""
    if name == "Expert":
        from rebase.serving.expert import Expert

        return Expert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
