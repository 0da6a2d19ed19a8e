"""Who a key belongs to, now: by a policy file that is read anew when it changes, by a key of this process, or by none.

The policy in force is one attribute, replaced whole. A file that fails, or is gone, changes nothing: the last good
policy stays, and the log and `status` say so.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rheostat.control import ControlFormat
from rheostat.errors import ConfigError
from rheostat.gateway.keys import find_key, hash_key
from rheostat.gateway.policy import HINT, Caller, Policy, local_tenant, read_policy
from rheostat.gateway.policy_file import AuditBlock
from rheostat.gateway.refusals import Refusal

LARGEST_BYTES = 2**18
"""A larger policy file is refused: some two thousand keys, whose reading takes seconds."""

POLL_S = 1.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What `/health` and the metrics say of the policy: which one is in force, whether it is watched, and what failed.

    `failures` counts the contents that were refused; `last_error` is None where the file is the policy in force.
    """

    path: str | None
    digest: str | None
    reloads: int = 0
    failures: int = 0
    last_error: str | None = None
    is_watched: bool = False


class CallerSource(Protocol):
    """Knows callers by their keys."""

    @property
    def audit(self) -> AuditBlock | None:
        """How the audit log is kept; the same as long as the process lives."""
        ...

    def caller(self, key: str | None) -> Caller:
        """Whose key it is. Raises `Refusal` (401)."""
        ...

    def status(self) -> SourceStatus:
        """What is in force."""
        ...

    def reload_soon(self) -> None:
        """Have it read anew by the task that watches it, at once: for SIGHUP."""
        ...

    async def start(self) -> None:
        """Begin to watch."""
        ...

    async def stop(self) -> None:
        """Watch no more."""
        ...


class PolicySource:
    """The policy of a file. Raises `ConfigError` where the file is no policy when it is first read.

    The file is looked at every `poll_s` seconds. Content that is new is read once it has stood for two looks: half of
    a policy that is being written may be a policy too, and a weaker one.
    """

    def __init__(self, path: Path, models: Mapping[str, ControlFormat], *, poll_s: float = POLL_S) -> None:
        self.check: Callable[[Policy], None] = lambda policy: None
        """What a new policy must pass besides; it raises `ConfigError`. Set once it is known what is served."""
        self.path = path
        self._models = models
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        content = _read(path)
        self.policy: Policy = read_policy(_decoded(content, path), models, name=str(path))
        self._seen = _identity(content)
        self._read_as = self._seen
        self._reloads = self._failures = 0
        self._last_error: str | None = None

    @property
    def audit(self) -> AuditBlock | None:
        """As it was at the start."""
        return self.policy.audit

    def caller(self, key: str | None) -> Caller:
        """Whose key it is, by the policy in force. Raises `Refusal` (401)."""
        return known_caller(self.policy.caller(_given(key), datetime.now(UTC)))

    def status(self) -> SourceStatus:
        """What is in force, and what failed since."""
        return SourceStatus(
            path=str(self.path),
            digest=self.policy.digest,
            reloads=self._reloads,
            failures=self._failures,
            last_error=self._last_error,
            is_watched=self._watcher is not None and not self._watcher.done(),
        )

    def reload(self) -> bool:
        """Read the file as it is now; gives whether it is the policy in force afterwards. Not for an event loop."""
        return self._look(settled=True)

    def look(self) -> bool:
        """One look at the file, as the task that watches takes it: new content is read at the second that sees it."""
        return self._look(settled=False)

    def reload_soon(self) -> None:
        """Have the task that watches read the file as it is now; from any thread, or a signal's handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def start(self) -> None:
        """Begin to watch the file."""
        assert self._watcher is None
        self._loop = asyncio.get_running_loop()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.path}")

    async def stop(self) -> None:
        """Watch no more; the policy stays in force."""
        watcher, self._watcher, self._loop = self._watcher, None, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self) -> None:
        while True:
            asked = False
            with contextlib.suppress(TimeoutError):
                asked = await asyncio.wait_for(self._wake.wait(), self._poll_s)
            self._wake.clear()
            try:
                await asyncio.to_thread(self.reload if asked else self.look)
            except Exception as error:
                # The boundary: whatever a file makes the code do, the next one is read, or a key that it takes away
                # would go on opening. What fails at every look is told once.
                said = f"{self.path}: reading it failed: {type(error).__name__}"
                if said != self._last_error:
                    self._failures += 1
                    self._last_error = said
                    _logger.exception("the policy in force stays, %s", said)

    def _look(self, *, settled: bool) -> bool:
        """Take over what stands in the file: at once, or where it is what the last look saw (`settled` False)."""
        with self._lock:
            content: bytes | ConfigError
            try:
                content = _read(self.path)
            except ConfigError as error:
                content = error
            identity = _identity(content)
            stands, self._seen = settled or identity == self._seen, identity
            if not stands:
                return False
            if identity != self._read_as:
                self._read_as = identity
                self._take(content)
            return self._last_error is None

    def _take(self, content: bytes | ConfigError) -> None:
        try:
            if isinstance(content, ConfigError):
                raise content
            policy = read_policy(_decoded(content, self.path), self._models, name=str(self.path))
            self.check(policy)
            if policy.audit != self.policy.audit:
                raise ConfigError(
                    [f"{self.path}: audit: got a block other than the one at the start, which a reload cannot change"],
                    hint="restart the gateway for it, or put the block back",
                )
        except ConfigError as error:
            self._failures += 1
            self._last_error = error.message
            _logger.error(
                "the policy in force stays, %s was refused: %s (hint: %s)", self.path, error.message, error.hint
            )
            return
        self.policy = policy
        self._reloads += 1
        self._last_error = None
        _logger.info("the policy of %s is in force, SHA-256 %s", self.path, policy.digest)


class LocalSource:
    """Where no policy file is: the local tenant, by one `key` of this process, or by any and none (`key` None).

    Without a key it is for `--insecure-local` alone, on a loopback address.
    """

    audit: AuditBlock | None = None

    def __init__(self, models: Mapping[str, ControlFormat], *, key: str | None) -> None:
        self._hashes = [] if key is None else [hash_key(key)]
        self._caller = Caller(local_tenant(models), "no-key" if key is None else "this-process")

    def caller(self, key: str | None) -> Caller:
        """The local tenant. Raises `Refusal` (401) for another key than the one there is."""
        if self._hashes and find_key(_given(key), self._hashes) is None:
            return known_caller(None)
        return self._caller

    def status(self) -> SourceStatus:
        """No file, no digest."""
        return SourceStatus(None, None)

    def reload_soon(self) -> None:
        """There is nothing to read."""

    async def start(self) -> None:
        """There is nothing to watch."""

    async def stop(self) -> None:
        """There is nothing to watch."""


def read_policy_file(path: Path, models: Mapping[str, ControlFormat]) -> Policy:
    """The policy of a file. Raises `ConfigError` with all problems."""
    return read_policy(_decoded(_read(path), path), models, name=str(path))


def example_policy() -> str:
    """A policy file with every key, for the packaged model."""
    return Path(__file__).with_name("policy_example.yaml").read_text(encoding="utf-8")


def known_caller(caller: Caller | None) -> Caller:
    """The caller, or `Refusal` (401) in the same words for a key that there is not and for one that has expired."""
    if caller is None:
        raise Refusal(401, "invalid_api_key", "the API key is not known here, or has expired", "ask for a new one")
    return caller


def _given(key: str | None) -> str:
    if not key:
        raise Refusal(
            401, "missing_api_key", "no API key was given", "send it in the header Authorization: Bearer KEY"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK a named pipe would hold this up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError([f"{path}: got no regular file"], hint="give the path of a YAML file")
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"], hint=HINT) from None
    if len(content) > LARGEST_BYTES:
        raise ConfigError(
            [f"{path}: got more than {LARGEST_BYTES} bytes, allowed are as many"], hint="is it the right file?"
        )
    return content


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {line}: got bytes that are not UTF-8"], hint="save it as UTF-8") from None


def _identity(content: bytes | ConfigError) -> str:
    """The same for the same content, and for the same reason why there is none."""
    return content.message if isinstance(content, ConfigError) else hashlib.sha256(content).hexdigest()
