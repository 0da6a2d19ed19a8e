"""Chat requests whose answers are to be JSON of a schema, asked for by the schema where the server takes one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rheostat.endpoint import Answer, ChatRequest, Endpoint
from rheostat.errors import EndpointError

Structured = Literal["auto", "schema", "none"]
"""`schema` asks for an answer of a JSON schema (`response_format`), `none` does not, `auto` until it is refused."""

_REFUSES_A_SCHEMA = (400, 415, 422)
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StructuredChat:
    """Asks an endpoint; under `auto` its first request tries whether the server takes a schema."""

    endpoint: Endpoint
    structured: Structured
    _asks_for_schema: bool | None = field(default=None, init=False)

    def ask(self, requests: Sequence[ChatRequest], response_format: Mapping[str, Any]) -> list[Answer]:
        """The answers, in order. Raises `EndpointError`."""
        if self._asks_for_schema is None and self.structured == "auto" and requests:
            first = self._try_schema(requests[0], response_format)
            return [first, *self.ask(requests[1:], response_format)]
        if self._asks_for_schema or self.structured == "schema":
            requests = [replace(each, extra_body={"response_format": response_format}) for each in requests]
        return self.endpoint.chat(requests)

    def _try_schema(self, request: ChatRequest, response_format: Mapping[str, Any]) -> Answer:
        self._asks_for_schema = True
        try:
            return self.ask([request], response_format)[0]
        except EndpointError as error:
            if error.status not in _REFUSES_A_SCHEMA:
                raise
            self._asks_for_schema = False
            answer = self.ask([request], response_format)[0]  # what else it refuses, it refuses again
            model = self.endpoint.options.model
            _logger.warning("judge %s: the server takes no JSON schema; asked in words alone", model)
            return answer
