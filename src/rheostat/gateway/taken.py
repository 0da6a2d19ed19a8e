"""What an ask has taken of its tenant's tokens by the time that it ends, however it ends."""

from rheostat.gateway.backend import Ask, Piece, Usage
from rheostat.gateway.permitted import prompt_estimate

_BYTES_A_TOKEN = 4


class Taken:
    """Counts what comes for an ask of `samples` answers until the usage is known.

    An answer has as many tokens as pieces came of it, or as its text is long: a server's whole answer is one piece.
    """

    def __init__(self, ask: Ask, samples: int) -> None:
        self._prompt, self._longest = prompt_estimate(ask), ask.max_tokens
        self._pieces, self._bytes = [0] * samples, [0] * samples
        self._usage: Usage | None = None

    def note(self, part: Piece | Usage) -> None:
        """A part of the answers has come."""
        if isinstance(part, Usage):
            self._usage = part
        else:
            self._pieces[part.sample] += 1
            self._bytes[part.sample] += len(part.text.encode("utf-8", "replace"))

    def tokens(self, *, are_unseen: bool) -> int:
        """The tokens; `are_unseen` where an answer of which nothing has come may have been drawn all the same."""
        if self._usage is not None:
            return self._usage.prompt_tokens + self._usage.completion_tokens
        return self._prompt + sum(
            min(self._longest, max(pieces, size // _BYTES_A_TOKEN)) if pieces or not are_unseen else self._longest
            for pieces, size in zip(self._pieces, self._bytes, strict=True)
        )
