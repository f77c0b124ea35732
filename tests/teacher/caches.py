"""Response caches for the tests of their modules."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rebase.teacher.protocol import Request, Response
from rebase.teacher.response_cache import ResponseCache
from tests.scripted import cached, generate_all
from tests.teacher.teachers import Echo, echo, request, texts_of

#: Eight processes open one new store (or one damaged store) at the same moment, several times.
BEGINNERS = """
import multiprocessing, pathlib, sys
from rebase.teacher.response_cache import ResponseCache

def begin(path, barrier):
    barrier.wait()
    store = ResponseCache(path)
    ok = sys.argv[2] == "0" or len(list(store.export())) == int(sys.argv[2])
    store.close()
    sys.exit(0 if ok else 1)

context = multiprocessing.get_context("fork")
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.sqlite")) or [pathlib.Path(sys.argv[1], str(n)) for n in range(15)]
for path in paths:
    barrier = context.Barrier(8)
    processes = [context.Process(target=begin, args=(path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("an opening failed, or did not find all")
"""


def texts(teacher: Echo, path: Path, asked: list[str]) -> list[str]:
    return texts_of(generate_all(cached(teacher, path), map(request, asked)))


def response(asked: Request, **changes: object) -> Response:
    text = echo(asked.messages[0].content)
    return replace(Response(asked.key("echo", "echo-1"), text, "stop", 10, 2), **changes)


def fill(path: Path, count: int, length: int = 500) -> list[Request]:
    """Store responses to so many prompts that are ``length`` characters long."""
    asked = [request(f"prompt {number} ".ljust(length, "x")) for number in range(count)]
    with closing(ResponseCache(path)) as store:
        for one in asked:
            store.put(one, response(one), "echo", "echo-1")
    return asked


def export(path: Path) -> list[dict]:
    with closing(ResponseCache(path)) as store:
        return list(store.export())
