"""The teacher's providers by name. A provider is one class and one line here, or an entry point of another package."""

from importlib.metadata import entry_points

from rebase.errors import RebaseError
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.local import LocalTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Teacher
from rebase.teacher.replay import ReplayTeacher

PROVIDERS: dict[str, type[Teacher]] = {
    "local": LocalTeacher,
    "anthropic": AnthropicTeacher,
    "openai": OpenAITeacher,
    "replay": ReplayTeacher,
}
#: The entry-point group in which other packages register their teachers.
ENTRY_POINTS = "rebase.teachers"


def find_provider(name: str) -> type[Teacher]:
    """Return the class of a provider. Raises RebaseError if there is none, or its package cannot be imported."""
    if name in PROVIDERS:
        return PROVIDERS[name]
    others = entry_points(group=ENTRY_POINTS)
    if name not in others.names:
        names = ", ".join([*PROVIDERS, *sorted(others.names)])
        raise RebaseError(f"teacher.provider is {name!r}. Set it to one of: {names}.")
    try:
        return others[name].load()
    except (ImportError, AttributeError) as error:
        raise RebaseError(f"The teacher {name!r} cannot be loaded from {others[name].value}: {error}") from error
