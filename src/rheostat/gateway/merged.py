"""Several streams as one, in whatever order their items come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")
_AHEAD = 64


@dataclass(frozen=True, slots=True)
class _End:
    fault: Exception | None


async def merged(streams: Sequence[AsyncGenerator[_Item, None]], at_once: int) -> AsyncGenerator[_Item, None]:
    """The items of all streams, `at_once` of which are read at a time; the first one that fails ends all.

    Closing it closes every stream.
    """
    queue: asyncio.Queue[_Item | _End] = asyncio.Queue(_AHEAD)
    waiting = iter(streams)

    async def read() -> None:
        for stream in waiting:
            async with aclosing(stream):
                async for item in stream:
                    await queue.put(item)

    async def read_all() -> None:
        fault = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(streams))):
                    group.create_task(read())
        except ExceptionGroup as failed:
            fault = failed.exceptions[0]
        await queue.put(_End(fault))

    reading = asyncio.create_task(read_all())
    try:
        while not isinstance(item := await queue.get(), _End):
            yield item
        if item.fault is not None:
            raise item.fault
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        for stream in streams:
            await stream.aclose()
