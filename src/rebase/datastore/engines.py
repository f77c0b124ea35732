"""Engines run functions on shards: in this process, or on a Ray cluster."""

import logging
import math
import os
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

#: The run ends after this many workers died of one item.
_MAX_DEATHS = 4
_OPENING = "the opening of its tool"
#: Seconds that workers have to close their tools.
_CLOSING = 30


@dataclass(frozen=True)
class LocalEngine:
    """Runs everything in this process, with one tool and as many threads as ``map`` is given."""

    def map(
        self,
        function: Callable[[Any, Item], Result],
        items: Iterable[Item],
        opener: Opener = nullcontext,
        threads: int = 1,
    ) -> Iterator[Result]:
        """Yield ``function(tool, item)`` of every item, in any order; stop at the first error.

        ``opener`` yields the tool of a worker, such as an encoder; up to ``threads`` calls use one tool at once. The
        memory of an item is free when its result was taken. On other engines, function, opener and items may be sent to
        another process, and an item may be processed twice.
        """
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
                        # Two a thread: enough to keep all threads busy, few enough to keep few results in memory.
                        if len(running) >= 2 * threads:
                            done, running = wait(running, return_when=FIRST_COMPLETED)
                            yield from (future.result() for future in done)
                    yield from (future.result() for future in wait(running).done)
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class RayEngine:
    """Runs on Ray, with ``workers`` processes on the machines that have capacity; each has its own tool.

    ``cpus`` and ``gpus`` are the resources of each worker; without ``gpus`` a worker sees no GPU. ``address`` is that
    of a running cluster (``auto`` on one of its machines); if None, Ray starts on this machine. A worker that dies is
    replaced, and only its current items are repeated. Workers without capacity delay no other worker.
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
        """As ``LocalEngine.map``."""
        jobs: Iterator[_Job] = map(_Job, items)
        if not (first := list(islice(jobs, self.workers))):
            return
        jobs = chain(first, jobs)
        ray = self._connected()
        worker_type = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=threads)(_Worker)
        pool = _WorkerPool(partial(worker_type.remote, self._environment), function, opener, threads)
        try:
            for _ in first:
                pool.start(_Job(_OPENING))
            while pool.assign(jobs):
                done = ray.wait(list(pool.running))[0][0]
                worker, job = pool.running[done]
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # The worker died, or its result was lost with its machine.
                    ray.kill(worker)
                    jobs = chain(pool.replace(worker, error, partial(_is_lost, ray)), jobs)
                    continue
                pool.finish(done)
                if job.item is not _OPENING:
                    yield result
            closing = [worker.close.remote() for worker in set(pool.free)]
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSING)
        finally:
            for worker in pool.workers:
                ray.kill(worker)

    @property
    def _environment(self) -> dict[str, str]:
        """A worker's environment: as many threads as processors, no progress bars, no GPU of another process."""
        threads = str(max(1, int(self.cpus)))
        bars = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        no_gpu = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, **bars, **no_gpu}

    def _connected(self) -> Any:
        """Connect to Ray once. Raises RebaseError if it is not installed, unreachable, or too small for a worker."""
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
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if not self.address and (resources.get("CPU", 0) < self.cpus or resources.get("GPU", 0) < self.gpus):
            raise RebaseError(
                f"engine: a worker takes {self.cpus} CPUs and {self.gpus} GPUs, but this machine's Ray has "
                f"{resources.get('CPU', 0):.0f} and {resources.get('GPU', 0):.0f}. Reduce `cpus` and `gpus`."
            )
        return ray


Engine = LocalEngine | RayEngine


@dataclass
class _Job:
    """An item, or the opening of a tool, and how many workers died of it."""

    item: Any
    deaths: int = 0

    def __str__(self) -> str:
        """The name of a shard's item: it has a name, its first part has one, or that part is the name."""
        named = self.item[0] if isinstance(self.item, tuple) else self.item
        return str(getattr(named, "name", named))[:200]


class _Worker:
    """The state of a Ray worker process: a tool, and the function that uses it.

    Both arrive after the environment is set, because torch and numba read it when they are imported.
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


class _WorkerPool:
    """The workers of one ``map`` on Ray, and their jobs.

    Attributes:
        workers: all living workers, and how many items each is given ahead of those that it works on.
        free: workers with an open tool, once for each item that they can be given.
        running: the worker and job behind each of Ray's references to a result, earliest first.

    """

    def __init__(self, create: Callable[[], Any], function: Callable[[Any, Any], Any], opener: Opener, threads: int):
        self.workers: dict[Any, int] = {}
        self.free: deque[Any] = deque()
        self.running: dict[Any, tuple[Any, _Job]] = {}
        self._create, self._function, self._opener, self._threads = create, function, opener, threads

    def start(self, opening: _Job, ahead: int = 1) -> None:
        """Start a worker, which opens its tool first."""
        worker = self._create()
        self.workers[worker] = ahead
        self.running[worker.open.remote(self._function, self._opener)] = worker, opening

    def assign(self, jobs: Iterator[_Job]) -> bool:
        """Assign jobs to free workers; return whether a result is running, or no worker is ready yet."""
        while self.free and (job := next(jobs, None)):
            worker = self.free.popleft()
            self.running[worker.work.remote(job.item)] = worker, job
        return not self.free or any(job.item is not _OPENING for _, job in self.running.values())

    def finish(self, reference: Any) -> None:
        """Free the worker: for one more item, or after the opening of its tool for all that it is given at once."""
        worker, job = self.running.pop(reference)
        if worker in self.workers:
            self.free.extend([worker] * (self._threads + self.workers[worker] if job.item is _OPENING else 1))

    def replace(self, worker: Any, error: Exception, is_lost: Callable[[Any], bool]) -> list[_Job]:
        """Replace a worker that died; return the jobs to assign again.

        Results that are not lost stay ``running``. The result of a finished job is lost too if its worker dies at the
        next one before it is sent. So a replacement is given no item ahead, and only its death counts against its jobs.
        Raises RebaseError if too many workers died of one job.
        """
        references = [
            reference for reference, (owner, _) in self.running.items() if owner is worker and is_lost(reference)
        ]
        lost = [self.running.pop(reference)[1] for reference in references]
        ahead = self.workers.pop(worker)
        for job in lost:
            job.deaths += job.item is _OPENING or not ahead
        if any(job.deaths == _MAX_DEATHS for job in lost):
            raise RebaseError(
                f"engine: {_MAX_DEATHS} workers died one after another at {' or '.join(map(str, lost))}: out of "
                "memory, or a library crashed. Give workers more memory, or remove this dataset, and run again. "
                f"Ray reports: {' '.join(str(error).split())[-500:]}"
            ) from error
        self.free = deque(other for other in self.free if other is not worker)
        self.start(lost[0] if lost[0].item is _OPENING else _Job(_OPENING), ahead=0)
        return [lost_job for lost_job in lost if lost_job.item is not _OPENING]


def _is_lost(ray: Any, reference: Any) -> bool:
    """Whether Ray has no result of a dead worker's job."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError:  # An error of the job is its result.
        return False
    except ray.exceptions.RayError:
        return True
    return False


def open_engine(settings: Mapping[str, Any]) -> Engine:
    """The engine of the settings: ``kind: local`` (the default) or ``kind: ray``.

    Raises RebaseError if a kind or setting is unknown.
    """
    kinds: dict[str, Callable[..., Engine]] = {"local": LocalEngine, "ray": RayEngine}
    kind = settings.get("kind", "local")
    try:
        return kinds[kind](**{name: value for name, value in settings.items() if name != "kind"})
    except (KeyError, TypeError, ValueError) as error:
        raise RebaseError(
            f"engine: {dict(settings)} is not understood ({error}); kinds are {', '.join(kinds)}."
        ) from None
