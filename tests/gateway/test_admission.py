"""The bounded queue: order, numbers, refusals, what becomes of those who leave it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.gateway.admission import Admission
from rheostat.gateway.refusals import Refusal


class Worker:
    """Comes, works until it is let go, and leaves."""

    def __init__(self, admission: Admission) -> None:
        self.is_working = self.is_refused = False
        self.let_go = asyncio.Event()
        self.task = asyncio.create_task(self._work(admission))

    async def _work(self, admission: Admission) -> None:
        try:
            async with admission.place():
                self.is_working = True
                await self.let_go.wait()
        except Refusal:
            self.is_refused = True
        finally:
            self.is_working = False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


def test_places_go_to_who_came_first() -> None:
    async def work() -> None:
        admission = Admission(in_work=2, queue=2)
        workers = []
        for _ in range(4):
            workers.append(Worker(admission))
            await settle()
        assert [worker.is_working for worker in workers] == [True, True, False, False]
        assert (admission.working, admission.waiting) == (2, 2)
        with pytest.raises(Refusal) as refused:
            admission.check()
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        workers[1].let_go.set()
        await settle()
        assert [worker.is_working for worker in workers] == [True, False, True, False]
        for worker in workers:
            worker.let_go.set()
        await asyncio.gather(*(worker.task for worker in workers))
        assert (admission.working, admission.waiting) == (0, 0)

    run(work)


def test_without_a_queue_nobody_waits() -> None:
    async def work() -> None:
        admission = Admission(in_work=1, queue=0)
        worker = Worker(admission)
        await settle()
        with pytest.raises(Refusal):
            async with admission.place():
                pass
        worker.let_go.set()
        await worker.task
        async with admission.place():
            assert admission.working == 1

    run(work)


def test_who_is_cancelled_in_the_moment_of_getting_a_place_hands_it_on() -> None:
    async def work() -> None:
        admission = Admission(in_work=1, queue=5)
        first, second, third = Worker(admission), Worker(admission), Worker(admission)
        await settle()
        first.let_go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.task.cancel()
        await settle()
        assert third.is_working and admission.working == 1
        third.let_go.set()
        await third.task
        assert (admission.working, admission.waiting) == (0, 0)

    run(work)


@given(
    places=st.integers(1, 3),
    queue=st.integers(0, 3),
    moves=st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(0, 20)), max_size=30),
)
def test_numbers_hold_whatever_comes_leaves_or_is_cancelled(
    places: int, queue: int, moves: list[tuple[str, int]]
) -> None:
    async def work() -> None:
        admission = Admission(in_work=places, queue=queue)
        workers: list[Worker] = []
        for move, which in moves:
            if move == "come":
                workers.append(Worker(admission))
            elif workers:
                worker = workers[which % len(workers)]
                if move == "leave":
                    worker.let_go.set()
                else:
                    worker.task.cancel()
            if which % 2:
                await settle()
            working = sum(worker.is_working for worker in workers)
            assert working <= places and admission.waiting <= queue + places
        await settle()
        alive = [worker for worker in workers if not worker.task.done()]
        assert admission.working == min(places, len(alive))
        assert admission.waiting == len(alive) - admission.working
        for worker in workers:
            worker.let_go.set()
        await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)
        assert (admission.working, admission.waiting) == (0, 0)

    run(work)


def test_retry_after_follows_from_service_times_and_the_queue() -> None:
    """Two places, 3 s a request, four waiting: the fifth of them is served after (4 + 1) / 2 × 3 = 7.5 s."""

    async def work() -> None:
        admission = Admission(in_work=2, queue=4)
        assert admission.retry_after_s() == 1
        admission.record(3.0)
        workers = [Worker(admission) for _ in range(6)]
        await settle()
        with pytest.raises(Refusal) as refused:
            admission.check()
        assert refused.value.retry_after_s == 8
        for worker in workers:
            worker.task.cancel()
        await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)

    run(work)


def test_draining_lets_in_nobody_new_and_those_who_wait_have_their_turn() -> None:
    async def work() -> None:
        admission = Admission(in_work=1, queue=1)
        first, second = Worker(admission), Worker(admission)
        await settle()
        admission.drain()
        with pytest.raises(Refusal) as refused:
            admission.check()
        assert (refused.value.status, refused.value.code) == (503, "shutting_down")
        first.let_go.set()
        await settle()
        assert second.is_working
        second.let_go.set()
        await second.task

    run(work)
