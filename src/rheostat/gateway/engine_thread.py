"""The thread in which the engine works: it lets requests in, steps the decode loops, and tells what came of it."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rheostat.engines._live import Drawn, Failed, LiveLoop, LiveRequest
from rheostat.errors import ModelError
from rheostat.gateway.backend import Piece
from rheostat.gateway.text_stream import TextStream


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request to a model's loop, and the texts that its samples become. After `submit` it is the thread's alone."""

    model: str
    request: LiveRequest
    texts: Sequence[TextStream]
    ended: set[int] = field(default_factory=set)


@dataclass(slots=True)
class News:
    """What a step brought a ticket: tokens drawn and the text that is certain by them, or an error that ends it."""

    ticket: Ticket
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    error: ModelError | None = None


@dataclass(frozen=True, slots=True)
class _Cancelled:
    ticket: Ticket


class EngineThread:
    """Runs from its making until `stop`, or until it dies of a fault of ours; `on_end` is called in either case.

    `on_news` gets all that a step brought, in one call. Both are called in the thread.
    """

    def __init__(
        self,
        loops: Mapping[str, LiveLoop],
        on_news: Callable[[list[News]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loops = dict(loops)
        self._on_news = on_news
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[Ticket | _Cancelled | None] = queue.SimpleQueue()
        self._tickets: dict[LiveRequest, Ticket] = {}
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="rheostat-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether what is submitted now will be heard of again."""
        return not self._has_ended

    def submit(self, ticket: Ticket) -> None:
        """Queues a request."""
        self._inbox.put(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request at the next step."""
        self._inbox.put(_Cancelled(ticket))

    def stop(self) -> None:
        """Ends the thread after the step that it is in."""
        self._inbox.put(None)

    def join(self) -> None:
        """Waits until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._hear():
                for loop in self._loops.values():
                    if not loop.is_idle and (news := self._told(loop, loop.step())):
                        self._on_news(news)
        finally:
            self._has_ended = True  # before `on_end`: whoever asks after that must not be let in
            self._loops.clear()
            self._tickets.clear()
            self._on_end()

    def _hear(self) -> bool:
        """Takes in what was asked, waiting for it where there is nothing to do; False at the end."""
        is_idle = all(loop.is_idle for loop in self._loops.values())
        while is_idle or not self._inbox.empty():
            asked = self._inbox.get()
            is_idle = False
            match asked:
                case None:
                    return False
                case Ticket():
                    self._tickets[asked.request] = asked
                    self._loops[asked.model].submit(asked.request)
                case _Cancelled(ticket):
                    self._tickets.pop(ticket.request, None)
                    self._loops[ticket.model].cancel(ticket.request)
        return True

    def _told(self, loop: LiveLoop, events: Sequence[Drawn | Failed]) -> list[News]:
        news: dict[LiveRequest, News] = {}
        for event in events:
            ticket = self._tickets.get(event.request)
            if ticket is None:
                continue
            entry = news.setdefault(event.request, News(ticket))
            if isinstance(event, Failed):
                entry.error = event.error
                del self._tickets[event.request]
            else:
                self._tell_token(loop, event, entry)
        return list(news.values())

    def _tell_token(self, loop: LiveLoop, event: Drawn, entry: News) -> None:
        ticket = entry.ticket
        entry.tokens += 1
        stream, finish = ticket.texts[event.sample], event.finish
        text = stream.add(event.token)
        if finish is not None:
            text += stream.end()
        elif stream.has_stopped:
            loop.cancel(event.request, event.sample)
        if stream.has_stopped:
            finish = "stop"
        if text or finish is not None:
            entry.pieces.append(Piece(event.sample, text, finish))
        if finish is not None:
            ticket.ended.add(event.sample)
            if len(ticket.ended) == event.request.samples:
                del self._tickets[event.request]
