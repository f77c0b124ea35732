"""The flow keeps the rows' order, holds what is in flight within its room, and leaves nothing behind."""

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.teacher.concurrency import Pending, RequestGroup, in_order, run
from rebase.teacher.protocol import Message, Request, Response, Sampling


class Worker:
    """Doubles each item after a random while, and counts how many it works on."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = random.Random(seed)
        self.working: set[int] = set()
        self.most = 0
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        self.working.add(item)
        self.most = max(self.most, len(self.working))
        try:
            for _ in range(self.generator.randrange(8)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.working.discard(item)
        return 2 * item


def collect(work: Callable[[int], Coroutine[Any, Any, int]], items: Any, room: Callable[[], int]) -> list[int]:
    async def results() -> list[int]:
        async with aclosing(in_order(work, items, room)) as found:
            return [result async for result in found]

    return asyncio.run(results())


@given(st.integers(0, 40), st.integers(1, 50), st.integers(0, 10**6))
def test_results_in_order_with_never_more_than_there_is_room_for(number: int, room: int, seed: int) -> None:
    work = Worker(seed)
    assert collect(work, range(number), lambda: room) == [2 * item for item in range(number)]
    assert work.begun == list(range(number))
    assert work.most <= room


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 10**6))
def test_room_may_shrink_and_grow(rooms: list[int], seed: int) -> None:
    work = Worker(seed)
    taken = 0
    given_room = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in count():
            taken += 1
            yield item

    async def results() -> None:
        nonlocal given_room
        expected = 0
        async with aclosing(in_order(work, items(), lambda: given_room)) as found:
            for room in rooms:
                given_room = room
                for _ in range(10):
                    before = taken
                    assert await anext(found) == 2 * expected
                    # What is there already stays; of what is new there is no more than there is room for.
                    assert before <= taken <= max(before, expected + room)
                    assert taken >= expected + room
                    expected += 1

    asyncio.run(results())


def test_zero_concurrency_ends_the_work_after_the_open_items() -> None:
    work = Worker()
    room = iter([3, 3, 3, 3])
    assert collect(work, count(), lambda: next(room, 0)) == [0, 2, 4]
    assert work.begun == [0, 1, 2]
    assert collect(Worker(), range(5), lambda: 0) == []


def test_a_slow_item_holds_up_no_others_within_the_room() -> None:
    finished = []

    async def work(item: int) -> int:
        while item == 0 and len(finished) < 4:
            await asyncio.sleep(0)
        finished.append(item)
        return item

    assert collect(work, range(5), lambda: 5) == [0, 1, 2, 3, 4]
    assert finished[-1] == 0


def test_endless_items_take_bounded_memory() -> None:
    taken = 0

    def items() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(10_000)

    async def work(item: bytes) -> bytes:
        await asyncio.sleep(0)
        return item

    async def results() -> None:
        seen = 0
        async with aclosing(in_order(work, items(), lambda: 10)) as found:
            async for _ in found:
                seen += 1
                assert taken <= seen + 10
                if seen == 2000:
                    return

    tracemalloc.start()
    asyncio.run(results())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # all of them would be 20 MB


def test_closing_early_cancels_what_is_worked_on() -> None:
    work = Worker()

    async def forever(item: int) -> int:
        work.begun.append(item)
        try:
            if item:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            work.cancelled.append(item)
            raise
        return item

    async def first() -> int:
        async with aclosing(in_order(forever, count(), lambda: 4)) as found:
            return await anext(found)

    assert asyncio.run(first()) == 0
    assert sorted(work.cancelled) == [1, 2, 3]


def test_an_error_of_the_work_is_raised_in_order_and_cancels_the_rest() -> None:
    working = set()

    async def work(item: int) -> int:
        working.add(item)
        try:
            if item == 2:
                raise ZeroDivisionError("two")
            if item > 2:
                await asyncio.Event().wait()
        finally:
            working.discard(item)
        return item

    seen = []

    async def results() -> None:
        async with aclosing(in_order(work, count(), lambda: 5)) as found:
            async for result in found:
                seen.append(result)

    with pytest.raises(ZeroDivisionError, match="two"):
        asyncio.run(results())
    assert seen == [0, 1]
    assert not working


def test_an_error_of_the_items_ends_the_work() -> None:
    work = Worker()

    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        collect(work, items(), lambda: 10)
    assert not work.working


def test_cancelling_the_consumer_cancels_the_work() -> None:
    cancelled = []

    async def work(item: int) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def main() -> None:
        async def use() -> None:
            async with aclosing(in_order(work, range(9), lambda: 3)) as found:
                async for _ in found:
                    pass

        waiting = asyncio.create_task(use())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert sorted(cancelled) == [0, 1, 2]

    asyncio.run(main())


async def _three() -> int:
    await asyncio.sleep(0)
    return 3


async def _error() -> None:
    raise KeyError("lost")


def test_run_inside_and_outside_of_a_running_loop() -> None:
    async def notebook() -> int:
        with pytest.raises(KeyError, match="lost"):
            run(_error())
        return run(_three())

    assert run(_three()) == 3
    assert asyncio.run(notebook()) == 3
    with pytest.raises(KeyError, match="lost"):
        run(_error())


# RequestGroup


def request(number: int) -> Request:
    return Request("", (Message("user", str(number)),), {}, Sampling())


def number_of(asked: Request) -> int:
    return int(asked.messages[0].content)


class Answers:
    """Answers the groups of a request group, backwards, and keeps them."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.groups: list[list[int]] = []
        self.generator = random.Random(seed)
        self.group = RequestGroup(size, self.answer)

    async def answer(self, group: list[Pending]) -> None:
        self.groups.append([number_of(pending.request) for pending in group])
        for pending in reversed(group):
            for _ in range(self.generator.randrange(3)):
                await asyncio.sleep(0)
            pending.resolve(Response("", str(number_of(pending.request)), "stop", 0, 0))

    async def ask(self, number: int) -> int:
        return int((await self.group.generate(request(number))).text)


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_each_request_gets_its_response_in_groups_of_bounded_size(number: int, size: int, seed: int) -> None:
    answers = Answers(size, seed)

    async def generate_all() -> list[int]:
        return list(await asyncio.gather(*map(answers.ask, range(number))))

    assert asyncio.run(generate_all()) == list(range(number))
    assert [asked for group in answers.groups for asked in group] == list(range(number))
    # Those who ask at the same time are answered together.
    assert [len(group) for group in answers.groups] == [size] * (number // size) + [number % size] * (number % size > 0)


def test_a_group_waits_until_nobody_adds_to_it() -> None:
    answers = Answers(100)

    async def late(number: int) -> int:
        for _ in range(number % 3):  # as work before a request takes its turns of the loop
            await asyncio.sleep(0)
        return await answers.ask(number)

    async def main() -> None:
        assert await asyncio.gather(*map(late, range(9))) == list(range(9))
        assert await answers.ask(9) == 9  # asked when all was quiet

    asyncio.run(main())
    assert [len(group) for group in answers.groups] == [9, 1]


def test_requests_made_during_a_group_are_in_the_next_one() -> None:
    answers = Answers(2)

    async def twice(number: int) -> tuple[int, int]:
        return await answers.ask(number), await answers.ask(10 + number)

    async def main() -> list[tuple[int, int]]:
        return list(await asyncio.gather(*map(twice, range(4))))

    assert asyncio.run(main()) == [(number, 10 + number) for number in range(4)]
    assert max(map(len, answers.groups)) == 2
    assert sorted(asked for group in answers.groups for asked in group) == [0, 1, 2, 3, 10, 11, 12, 13]


def test_an_error_is_raised_for_all_unresolved_requests_of_its_group() -> None:
    async def answer(group: list[Pending]) -> None:
        if number_of(group[0].request) == 0:
            group[0].resolve(Response("", "0", "stop", 0, 0))
            raise ValueError("does not work")
        for pending in group:
            pending.resolve(Response("", str(number_of(pending.request)), "stop", 0, 0))

    async def main() -> list[Any]:
        group = RequestGroup(3, answer)
        return await asyncio.gather(*(group.generate(request(n)) for n in range(5)), return_exceptions=True)

    first, second, third, *others = asyncio.run(main())
    assert first.text == "0"
    assert [str(error) for error in (second, third)] == ["does not work"] * 2
    assert [response.text for response in others] == ["3", "4"]


@asynccontextmanager
async def _no_stray_errors() -> AsyncIterator[None]:
    """Fails where the event loop meets an error that nobody sees."""
    strays: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strays.append(context))
    yield
    await asyncio.sleep(0)
    assert not strays


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 8])
def test_cancelled_callers_do_not_affect_the_others(turns: int) -> None:
    answers = Answers(4)

    async def main() -> None:
        async with _no_stray_errors():
            tasks = [asyncio.create_task(answers.ask(number)) for number in range(10)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            given_up = [task for task in tasks if task.cancelling()]
            answered = await asyncio.gather(*(task for task in tasks if task not in given_up))
            assert answered == [number for number in range(10) if tasks[number] not in given_up]
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await answers.ask(77) == 77

    asyncio.run(main())


def test_no_request_is_processed_after_all_were_cancelled() -> None:
    answers = Answers(4)

    async def main() -> None:
        async with _no_stray_errors():
            tasks = [asyncio.create_task(answers.ask(number)) for number in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(10):
                await asyncio.sleep(0)
            assert answers.groups == []
            assert await answers.ask(5) == 5

    asyncio.run(main())
