"""Rows that accompany another set's in every micro-batch: a few of them, whatever the set's own size.

Earlier requests' records go with forget, so that they stay forgotten; near neighbours go with retain, nearest
first, so that what is easily mistaken is kept. Knows row numbers and records; knows no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from expunge.batching import Rows, RowStream, drawn
from expunge.derived import is_derived
from expunge.records import Records

HOSTS: Final = {"forgotten": "forget", "curriculum": "retain"}
"""Companion -> the set whose objectives read it too."""

Row = TypeVar("Row")


def joined(sets: Mapping[str, Records]) -> dict[str, Records]:
    """Each companion's rows behind those of its host; a companion without its host is left out."""
    whole = {name: records for name, records in sets.items() if name not in HOSTS}
    for name, host in HOSTS.items():
        if name in sets and host in whole:
            rows = (*whole[host].rows, *sets[name].rows)
            whole[host] = dataclasses.replace(whole[host], rows=rows, numbers=())
    return whole


def join_rows(encoded: Mapping[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The same of encoded rows, and how many of a host's rows are its own."""
    whole = {name: list(rows) for name, rows in encoded.items() if name not in HOSTS}
    own = {name: len(rows) for name, rows in whole.items()}
    for name, host in HOSTS.items():
        if host in whole:
            whole[host] += encoded.get(name, [])
    return whole, own


def accompany(
    streams: Mapping[str, RowStream | Rows],
    encoded: Mapping[str, Sequence[object]],
    own: Mapping[str, int],
    counts: Mapping[str, int],
    seed: int,
) -> dict[str, RowStream | Rows]:
    """Streams of hosts with `counts` rows of their companions added to every micro-batch.

    `forgotten` rows come in passes in random order. `curriculum` rows come in the order that they stand in,
    nearest first, from the first to the last and again.

    Args:
        streams: Data set -> its own rows of each micro-batch. Sets derived from the forget set share
            its stream, and stand for it where a method reads them alone.
        encoded: Data set -> all rows, the companions' behind the host's own.
        own: Data set -> rows of its own.
        counts: Companion -> rows of it per micro-batch.
        seed: Of the random order.
    """
    found = dict(streams)
    for name, host in HOSTS.items():
        extra = len(encoded.get(host, ())) - own.get(host, 0)
        members = [other for other in streams if other == host or (host == "forget" and is_derived(other))]
        if not members or not extra or not counts.get(name):
            continue
        size = min(counts[name], extra)
        guests: RowStream | Rows = in_order(extra, size)
        if name == "forgotten":
            lengths = [1] * extra  # a handful at a time: grouping by length would only tie their order to it
            guests = RowStream(lengths, size, (seed, len(streams), 1))
        found |= dict.fromkeys(members, _beside(streams[members[0]], guests, own[host]))
    return found


def in_order(rows: int, size: int) -> Rows:
    """`size` rows per micro-batch, from the first to the last, then from the first again."""
    return lambda step: [(step * size + i) % rows for i in range(size)]


def _beside(rows: RowStream | Rows, extra: RowStream | Rows, first: int) -> Rows:
    """Rows of one stream, and behind them those of another, whose rows are numbered from `first`."""
    host, guest = drawn(rows), drawn(extra)
    return lambda step: [*host(step), *(first + row for row in guest(step))]
