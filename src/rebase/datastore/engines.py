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
from functools import partial
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

        ``opener`` yields the tool, an encoder say, once for each worker. ``threads`` says how many calls may share a
        tool at once. Function, opener and items may be sent to another process, and an item be worked at twice.
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
    (``auto`` on one of its machines); None starts one on this machine. A worker that dies, with its machine say, is
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
        jobs: Iterator[_Job] = map(_Job, items)
        if not (first := list(islice(jobs, self.workers))):
            return
        jobs = chain(first, jobs)
        ray = self._connected()
        worker_type = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=threads)(_Worker)
        crew = _Crew(partial(worker_type.remote, self._environment), function, opener, threads)
        try:
            for _ in first:
                crew.start(_Job(_OPENING))
            while crew.goes_on(jobs):
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
                crew.finish(worker, job)
                if job.item is not _OPENING:
                    yield result
            closing = [worker.close.remote() for worker in set(crew.free)]
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSING)
        finally:
            for worker in crew.workers:
                ray.kill(worker)

    @property
    def _environment(self) -> dict[str, str]:
        """What a worker's libraries go by: as many threads as it has processors, no bars, no GPU that is another's."""
        threads = str(max(1, int(self.cpus)))
        bars = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, **bars, **hidden}

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
                    f"engine: no Ray cluster is reached at {self.address!r}: {error}. Start one with "
                    "`ray start --head`, or set `address` to null to start it on this machine."
                ) from error
        room = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if not self.address and (room.get("CPU", 0) < self.cpus or room.get("GPU", 0) < self.gpus):
            raise RebaseError(
                f"engine: a worker takes {self.cpus} CPUs and {self.gpus} GPUs, but this machine's Ray has "
                f"{room.get('CPU', 0):.0f} and {room.get('GPU', 0):.0f}. Set `cpus` and `gpus` to what there is."
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
        running: to whom what was given, by Ray's reference to the result, the earliest first.

    """

    def __init__(self, hire: Callable[[], Any], function: Callable[[Any, Any], Any], opener: Opener, threads: int):
        self.workers: set[Any] = set()
        self.free: deque[Any] = deque()
        self.running: dict[Any, tuple[Any, _Job]] = {}
        self._hire, self._function, self._opener, self._threads = hire, function, opener, threads

    def start(self, opening: _Job) -> None:
        """One more worker, which opens its tool first."""
        worker = self._hire()
        self.workers.add(worker)
        self.running[worker.open.remote(self._function, self._opener)] = worker, opening

    def goes_on(self, jobs: Iterator[_Job]) -> bool:
        """Give jobs to who is free; whether there is a result to wait for, or nobody has begun yet."""
        while self.free and (job := next(jobs, None)):
            worker = self.free.popleft()
            self.running[worker.work.remote(job.item)] = worker, job
        return not self.free or any(job.item is not _OPENING for _, job in self.running.values())

    def finish(self, worker: Any, job: _Job) -> None:
        """Note who has done what. An open tool may have one item more than it works at, so as not to wait."""
        self.free.extend([worker] * (self._threads + 1 if job.item is _OPENING else 1))

    def replace(self, worker: Any, job: _Job, error: Exception) -> list[_Job]:
        """Put another worker in the place of one that died at a job; what is to be given out again.

        Raises RebaseError where too many have died of that job.
        """
        refs = [ref for ref, (who, _) in self.running.items() if who is worker]
        lost = [job, *(self.running.pop(ref)[1] for ref in refs)]
        suspects = lost[: self._threads]  # The others had not begun.
        for suspect in suspects:
            suspect.deaths += 1
        if job.deaths == _DEATHS:
            raise RebaseError(
                f"engine: {_DEATHS} workers died one after another at {' or '.join(map(str, suspects))}: out of "
                "memory, or a library crashed. Give workers more memory, or take this out, and run again. "
                f"Ray says: {' '.join(str(error).split())[-500:]}"
            ) from error
        self.workers.remove(worker)
        self.free = deque(other for other in self.free if other is not worker)
        self.start(job if job.item is _OPENING else _Job(_OPENING))
        return [one for one in lost if one.item is not _OPENING]


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
