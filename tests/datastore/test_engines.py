"""The engines do the same work; Ray's survives its workers."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from rebase.datastore.engines import LocalEngine, RayEngine, open_engine
from rebase.errors import RebaseError

RAY = RayEngine(workers=2)
ENGINES = pytest.mark.parametrize("engine", [LocalEngine(), RAY], ids=["local", "ray"])


def square(tool, number):
    return number * number


def with_tool(tool, number):
    return tool, number, os.getpid()


@contextmanager
def noted(folder: Path):
    """A tool that leaves a line for each time that it is opened and closed."""
    with (folder / "opened").open("a") as file:
        file.write(f"{os.getpid()}\n")
    yield "tool"
    with (folder / "closed").open("a") as file:
        file.write(f"{os.getpid()}\n")


def reject(tool, number):
    if number == 7:
        raise RebaseError("7 is not wanted. Take another one.")
    return number


def divide(tool, number):
    return 1 // number


def cannot_open():
    raise RebaseError("The encoder cannot be loaded. Name another one.")


def die_once(folder: Path, tool, number):
    """Kill the own process the first time that number 5 comes."""
    marker = folder / "died"
    if number == 5 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(tool, item):
    if item[0] == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_opening():
    os.kill(os.getpid(), signal.SIGKILL)


def take_long(folder: Path, tool, number):
    (folder / f"{number}.begun").touch()
    if number:
        time.sleep(60)
    return number


def settings_of(tool, _):
    import torch
    from numba import get_num_threads

    return torch.get_num_threads(), get_num_threads(), torch.cuda.is_available()


@ENGINES
@pytest.mark.parametrize(("count", "threads"), [(0, 1), (1, 1), (40, 1), (40, 3)])
def test_every_item_is_worked_at_once(engine, count, threads):
    assert Counter(engine.map(square, iter(range(count)), threads=threads)) == Counter(n * n for n in range(count))


@ENGINES
def test_each_worker_opens_its_tool_once_and_closes_it(engine, tmp_path):
    done = list(engine.map(with_tool, range(20), partial(noted, tmp_path)))
    assert {(tool, number) for tool, number, _ in done} == {("tool", number) for number in range(20)}
    opened = (tmp_path / "opened").read_text().split()
    assert len(opened) == len(set(opened)) <= 2
    assert {str(process) for *_, process in done} <= set(opened)
    assert sorted((tmp_path / "closed").read_text().split()) == sorted(opened)


@ENGINES
def test_an_error_comes_out_as_it_is(engine):
    with pytest.raises(RebaseError) as rejected:
        list(engine.map(reject, range(20)))
    assert type(rejected.value) is RebaseError
    assert str(rejected.value) == "7 is not wanted. Take another one."
    with pytest.raises(ZeroDivisionError, match=r"^(integer )?division") as failed:
        list(engine.map(divide, [1, 0]))
    assert "ray" not in str(failed.value)
    with pytest.raises(RebaseError, match=r"^The encoder cannot be loaded\. Name another one\.$"):
        list(engine.map(square, [1], cannot_open))


def test_what_a_killed_worker_was_at_is_done_again(tmp_path):
    done = list(RAY.map(partial(die_once, tmp_path), range(30)))
    assert (tmp_path / "died").exists()
    assert sorted(done) == list(range(30))


def test_an_item_that_kills_every_worker_is_named():
    with pytest.raises(RebaseError, match=r"4 workers died one after another at poison: .* run again"):
        list(RAY.map(die, [("good", 1), ("poison", 2), *((f"good{n}", n) for n in range(5))]))


@pytest.mark.slow
def test_a_tool_that_kills_every_worker_is_given_up():
    with pytest.raises(RebaseError, match="4 workers died one after another at the opening of its tool"):
        list(RAY.map(square, [1, 2, 3], die_opening))


def test_a_caller_who_stops_ends_the_work(tmp_path):
    import ray

    results = RAY.map(partial(take_long, tmp_path), range(100))
    assert next(results) == 0
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 20
    # Its processors are free again.
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() - begun < 30
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) <= 1 + 2


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = RAY.map(square, items())
    next(results)
    assert len(taken) <= 1 + 2 * 2
    results.close()


def test_the_driver_holds_one_result_at_a_time():
    """Each result is 4 MB; all together would be 160."""
    tracemalloc.start()
    size = sum(len(blob) for blob in RAY.map(large, range(40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 40 * 2**22
    assert peak < 40 * 2**20


def large(tool, number):
    return bytes([number]) * 2**22


def test_more_workers_than_there_is_room_for_hold_up_nobody():
    list(RAY.map(square, [1]))  # Ray is there, with two processors
    assert sorted(RayEngine(workers=5).map(square, range(20))) == [n * n for n in range(20)]


def test_a_worker_has_as_many_threads_as_processors_and_no_gpu_that_it_did_not_ask_for():
    assert list(RAY.map(settings_of, [0])) == [(1, 1, False)]


def test_settings_choose_the_engine():
    assert open_engine({}) == LocalEngine()
    assert open_engine({"kind": "ray", "workers": 3, "gpus": 1}) == RayEngine(3, gpus=1)
    for wrong in ({"kind": "spark"}, {"kind": "local", "workers": 2}, {"kind": "ray", "workers": 0}):
        with pytest.raises(RebaseError, match="is not understood"):
            open_engine(wrong)


def test_more_than_this_machine_has_is_rejected():
    list(RAY.map(square, [1]))
    with pytest.raises(RebaseError, match="takes 64 CPUs and 0 GPUs, but this machine's Ray has 2 and"):
        list(RayEngine(cpus=64).map(square, [1]))
    with pytest.raises(RebaseError, match="Reduce `cpus` and `gpus`"):
        list(RayEngine(gpus=64).map(square, [1]))


def last_error(code: str) -> str:
    code = f"from rebase.datastore.engines import RayEngine\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2]


def test_without_ray_the_extra_is_named():
    message = last_error("import sys; sys.modules['ray'] = None; list(RayEngine().map(print, [1]))")
    assert message.startswith("rebase.errors.RebaseError: engine: kind ray needs Ray. Install it")
    assert '".[cluster]"' in message


def test_a_cluster_that_is_not_there_says_what_to_do():
    message = last_error("list(RayEngine(address='nowhere').map(print, [1]))")
    assert message.startswith("rebase.errors.RebaseError: engine: no Ray cluster is reached at 'nowhere'")
