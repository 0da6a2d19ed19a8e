"""The command line: arguments only. Results go to standard output, logs and progress to standard error.

A file of commands registers them by being imported here, in the order in which `--help` shows them.
"""

from rheostat.cli import jobs, patch, prompts, talking, serve, policy, reward, machine, pocket  # noqa: F401, I001
from rheostat.cli.app import app, main

__all__ = ["app", "main"]
