"""Every error a user's input can cause, one tree.

```
RheostatError                 shown without a traceback by the command line; exit code 2
├── ConfigError               the recipe: every problem in it at once
├── InputError                prompts, files and arguments
│   ├── PromptFileError       a prompt file, with the line at fault
│   ├── PromptTooLong         a prompt that leaves no room for a response
│   └── DialError             a dial outside [0, 1] or not a number
├── PluginNotFound            no plug-in file of that name
├── ModelError                a model, tokenizer or reward that cannot be loaded or used
│   ├── RewardError           scores that cannot be used: none, not finite, outside the declared range
│   └── EndpointError         a server that refuses what it is asked, or does not answer
├── ExecutorError             workers that cannot be had: no cluster, too small a one, Ray not installed
└── RunDirectoryError         the run directory
    ├── RunVersionError       written by another version of the format
    ├── RunBusyError          another process holds it
    ├── CorruptShard          a shard that cannot be read back
    ├── StageMissing          a stage was asked for whose input stage has not run
    └── StorageError          not writable, or the disk is full
```

Each message says what was received and what is allowed; `hint` says what to do.
"""

import difflib
from collections.abc import Sequence
from typing import Any


class RheostatError(Exception):
    """A fault in what the user gave, with the remedy in `hint`."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled whole, so that an error of another process can be raised in this one."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[RheostatError], arguments: tuple[Any, ...], state: dict[str, Any]) -> RheostatError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class ConfigError(RheostatError):
    """One or more problems in a recipe; `problems` holds them all, a line each."""

    def __init__(self, problems: Sequence[str], *, hint: str) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]), hint=hint)


class InputError(RheostatError):
    """Prompts, files or arguments that cannot be used."""


class PromptFileError(InputError):
    """A prompt file that cannot be used; the message names the line."""


class PromptTooLong(InputError):
    """A prompt that leaves no room for a response in the model's context."""


class DialError(InputError, ValueError):
    """A dial's value that is not a number in [0, 1], or a dial that does not exist."""


class PluginNotFound(RheostatError, LookupError):
    """No plug-in file of that name."""


class ModelError(RheostatError):
    """A model, tokenizer or reward that cannot be loaded or used."""


class RewardError(ModelError):
    """Reward scores that cannot be used: none, not finite, outside the declared range."""


class EndpointError(ModelError):
    """A server that refuses what it is asked, or has not answered within the patience there is.

    `status` is its HTTP status where it gave one at last.
    """

    def __init__(self, message: str, *, hint: str, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ExecutorError(RheostatError):
    """Workers that cannot be had: no cluster, too small a one, Ray not installed."""


class RunDirectoryError(RheostatError):
    """Something is wrong with the run directory."""


class RunVersionError(RunDirectoryError):
    """The run directory was written by another version of the format."""


class RunBusyError(RunDirectoryError):
    """Another process is working in the run directory."""


class CorruptShard(RunDirectoryError):
    """A shard that cannot be read back as it was written."""


class StageMissing(RunDirectoryError):
    """A stage was asked for, and a stage it reads from has not finished."""


class StorageError(RunDirectoryError):
    """The directory cannot be written, or the disk is full."""


def did_you_mean(name: object, names: Sequence[str]) -> str:
    """` (did you mean 'NEAREST'?)`, or nothing where none of `names` is like `name`, a key of YAML: any value."""
    near = difflib.get_close_matches(str(name), names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
