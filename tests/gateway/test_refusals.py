import pytest

from rheostat.gateway.refusals import Refusal


def test_a_refusal_takes_a_traceback_and_a_cause_as_any_exception_does() -> None:
    """Frameworks and `contextlib` set them from Python code."""
    refusal = Refusal(403, "code", "message", "hint")
    with pytest.raises(Refusal) as caught:
        raise refusal
    caught.value.__traceback__ = None
    caught.value.__cause__ = ValueError("why")
    assert {refusal} == {caught.value}
