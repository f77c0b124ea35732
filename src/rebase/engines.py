"""Where work on shards is done: in this process, or on a Ray cluster. The functions are the same."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from rebase.errors import RebaseError

Item = TypeVar("Item")
Result = TypeVar("Result")
Opener = Callable[[], AbstractContextManager[Any]]

#: How many workers may die of one item before it is given up.
_DEATHS = 4
_OPENING = "the opening of its tool"
#: Seconds that workers may take to close their tools.
_CLOSING = 30


class Engine(ABC):
    """Applies a function to many items; what one item costs in memory is freed when its result was taken."""

    @abstractmethod
    def map(
        self,
        function: Callable[[Any, Item], Result],
        items: Iterable[Item],
        opener: Opener = nullcontext,
        threads: int = 1,
    ) -> Iterator[Result]:
        """Yield ``function(tool, item)`` of every item, in any order; the first error ends it.

        ``opener`` yields the tool, an encoder say, once for each worker. ``threads`` says how many calls may share a tool
        at once. Function, opener and items must bear being sent to another process, and an item being worked at twice.
        """


@dataclass(frozen=True)
class LocalEngine(Engine):
    """Work in this process: one tool, as many threads as the work allows."""

    def map(
        self,
        function: Callable[[Any, Item], Result],
        items: Iterable[Item],
        opener: Opener = nullcontext,
        threads: int = 1,
    ) -> Iterator[Result]:
        with opener() as tool:
            if threads == 1:
                for item in items:
                    yield function(tool, item)
                return
            with ThreadPoolExecutor(threads) as pool:
                running: set[Future[Result]] = set()
                try:
                    for item in items:
                        running.add(pool.submit(function, tool, item))
                        # Two a thread: enough to keep all at work, few enough to keep few results in memory.
                        if len(running) >= 2 * threads:
                            done, running = wait(running, return_when=FIRST_COMPLETED)
                            yield from (future.result() for future in done)
                    yield from (future.result() for future in wait(running).done)
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class RayEngine(Engine):
    """Work on Ray: so many ``workers``, processes with a tool of their own, on whichever machines have room.

    ``cpus`` and ``gpus`` are what each takes; without ``gpus`` it sees none. ``address`` is that of a running cluster
    (``auto`` on one of its machines); None starts one on this machine. A worker that dies, of its machine's loss say, is
    replaced, and costs only what it was at. One that waits for room holds up nobody.
    """

    workers: int = 2
    address: str | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus <= 0 or self.gpus < 0:
            raise ValueError("workers must be 1 or more, cpus more than 0, gpus 0 or more")

    def map(
        self,
        function: Callable[[Any, Item], Result],
        items: Iterable[Item],
        opener: Opener = nullcontext,
        threads: int = 1,
    ) -> Iterator[Result]:
        ray = self._connected()
        jobs: Iterator[_Job] = map(_Job, items)
        first = list(islice(jobs, self.workers))
        jobs = chain(first, jobs)
        worker_type = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=threads)(_Worker)
        crew = _Crew(partial(worker_type.remote, self._environment), function, opener, threads)
        try:
            for _ in first:
                crew.start()
            while crew.give(jobs) or crew.works:
                done = ray.wait(list(crew.running))[0][0]
                worker, job = crew.running.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # The worker died, or its result was lost with its machine.
                    ray.kill(worker)
                    jobs = chain(crew.replace(worker, job, error), jobs)
                    continue
                crew.has_done(worker, job)
                if job.item is not _OPENING:
                    yield result
            closing = [worker.close.remote() for worker in set(crew.free)]
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSING) if closing else None
        finally:
            for worker in crew.workers:
                ray.kill(worker)

    @property
    def _environment(self) -> dict[str, str]:
        """What a worker's libraries go by: as many threads as it has processors, no bars, no GPU that is another's."""
        threads = str(max(1, int(self.cpus)))
        limits = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
        return limits if self.gpus else limits | {"CUDA_VISIBLE_DEVICES": ""}

    def _connected(self) -> Any:
        """Ray, connected once for all. Raises RebaseError where it is not installed, not reached, or has no room."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise RebaseError(
                'engine: kind ray needs Ray. Install it with pip install ".[cluster]", or set `engine: {kind: local}`.'
            ) from None
        if not ray.is_initialized():
            cpus = math.ceil(self.workers * self.cpus)
            local = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            try:
                ray.init(**({"address": self.address} if self.address else local), logging_level=logging.WARNING)
            except (ConnectionError, ValueError) as error:
                raise RebaseError(
                    f"engine: no Ray cluster is reached at {self.address!r}: {error}. Start one with `ray start --head`, "
                    "or set `address` to null to start it on this machine."
                ) from error
        room = ray.cluster_resources()
        if not self.address and (room.get("CPU", 0) < self.cpus or room.get("GPU", 0) < self.gpus):
            raise RebaseError(
                f"engine: a worker takes {self.cpus} CPUs and {self.gpus} GPUs, but Ray has {room.get('CPU', 0):.0f} and "
                f"{room.get('GPU', 0):.0f}. Set `cpus` and `gpus` to what there is."
            )
        return ray


@dataclass
class _Job:
    """An item, or the opening of a tool, and how many workers died of it."""

    item: Any
    deaths: int = 0

    def __str__(self) -> str:
        """What a shard's item is known by: it, or the first thing in it, has a name or is one."""
        known = self.item[0] if isinstance(self.item, tuple) else self.item
        return str(getattr(known, "name", known))[:200]


class _Worker:
    """What a process of Ray's holds: a tool, and the function that uses it.

    Both come after the environment is set, because torch and numba read it when they are imported.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._tools = ExitStack()

    def open(self, function: Callable[[Any, Any], Any], opener: Opener) -> None:
        self._function, self._tool = function, self._tools.enter_context(opener())

    def work(self, item: Any) -> Any:
        return self._function(self._tool, item)

    def close(self) -> None:
        self._tools.close()


class _Crew:
    """The workers of one ``map`` on Ray, and what each is at.

    Attributes:
        workers: all that live.
        free: those with an open tool, once for each item that they may be given.
        running: what was given to whom, by its reference, the earliest first.

    """

    def __init__(self, new: Callable[[], Any], function: Callable[[Any, Any], Any], opener: Opener, threads: int) -> None:
        self.workers: set[Any] = set()
        self.free: deque[Any] = deque()
        self.running: dict[Any, tuple[Any, _Job]] = {}
        self._new, self._function, self._opener, self._threads = new, function, opener, threads

    @property
    def works(self) -> bool:
        """Whether there is anything to wait for; workers that want for room to begin are not waited for."""
        return not self.free if not self.workers ... 

def open_engine(settings: Mapping[str, Any]) -> Engine:
    """The engine that the settings name: ``kind: local`` (also where nothing is said), or ``kind: ray``.

    Raises RebaseError on a kind or setting that is not known.
    """
    kinds: dict[str, type[Engine]] = {"local": LocalEngine, "ray": RayEngine}
    kind = settings.get("kind", "local")
    try:
        return kinds[kind](**{name: value for name, value in settings.items() if name != "kind"})
    except (KeyError, TypeError, ValueError) as error:
        raise RebaseError(
            f"engine: {dict(settings)} is not understood ({error}); kinds are {', '.join(kinds)}."
        ) from None
