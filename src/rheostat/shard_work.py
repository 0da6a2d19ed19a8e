"""The work of a stage as an executor sees it: a shard's items in, the bytes of its Parquet file out.

A shard is encoded where it is computed, so that whoever writes it only writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar, runtime_checkable

from rheostat.errors import InputError
from rheostat.records import Record
from rheostat.storage import encode_shard

Item = TypeVar("Item")
_ItemIn = TypeVar("_ItemIn", contravariant=True)

Compute: TypeAlias = Callable[[Sequence[Item], int], Sequence[Record]]
"""The rows of a shard, from its items and its seed."""


@runtime_checkable
class ShardWork(Protocol[_ItemIn]):
    """What a stage computes, as values that can be pickled; the models come with `open`."""

    def open(self) -> Callable[[Sequence[_ItemIn], int], Sequence[Record]]:
        """Loads what is needed, once, in the process where it runs."""
        ...


@dataclass(frozen=True, slots=True)
class InThisProcess(Generic[Item]):
    """A function of this process as the work of `stage`: it cannot go elsewhere."""

    stage: str
    compute: Compute[Item]

    def open(self) -> Compute[Item]:
        """The function."""
        return self.compute

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"the stage {self.stage} computes in the process that started it, and its executor has others",
            hint="use `executor: local` for it (rheostat run … --set executor=local); finished shards are kept",
        )


@dataclass(frozen=True, slots=True)
class ShardTask(Generic[Item]):
    """A shard to compute: its items, the key of their ids, its seed."""

    items: Sequence[Item]
    key: str
    seed: int


class EncodedShard(NamedTuple):
    """A shard as the bytes of its Parquet file, and how many rows it has."""

    data: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class EncodedWork(Generic[Item]):
    """Work whose rows leave it encoded."""

    work: ShardWork[Item]
    row_type: type[Record]

    def open(self) -> Callable[[ShardTask[Item]], EncodedShard]:
        """The opened work, from a task to an encoded shard."""
        return partial(_encoded, self.work.open(), self.row_type)


def _encoded(compute: Compute[Any], row_type: type[Record], task: ShardTask[Any]) -> EncodedShard:
    rows = compute(task.items, task.seed)
    return EncodedShard(encode_shard(rows, row_type, key=task.key), len(rows))
