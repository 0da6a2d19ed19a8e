"""`rheostat serve` as a process, for the tests that need a real one."""

import os
import signal
import subprocess
import sys


class Process:
    """A gateway in a process of its own; `lines` are those that it said by the time it listened."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rheostat", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self.url = ""

    def wait_until_ready(self) -> None:
        """Reads what it says until it listens."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if line.startswith("ready"):
                break
        else:
            raise AssertionError("\n".join(self.lines))
        self.url = self.address.partition("/#")[0].rstrip("/")

    @property
    def address(self) -> str:
        """The playground's, as it is said."""
        return next(line for line in self.lines if line.startswith("playground")).split()[1]

    def end(self) -> tuple[int, str]:
        """SIGTERM; gives the exit code and what was said since."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said
