"""Half of a surrogate pair in what a server says."""

import pytest

from rheostat.gateway.event_stream import Event
from rheostat.gateway.upstream_answers import BrokenAnswer, read_event


def test_half_a_surrogate_pair_is_no_answer() -> None:
    """JSON can spell it, UTF-8 cannot: no answer that holds it could be sent on."""
    chunk = b'{"choices": [{"index": 0, "delta": {"content": "\\ud83d"}, "finish_reason": null}]}'
    with pytest.raises(BrokenAnswer, match="no JSON"):
        read_event(Event("", chunk))
