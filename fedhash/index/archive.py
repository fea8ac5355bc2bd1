"""A site's archive of codes: exact search in memory over one crash-safe file.

1. An archive belongs to one release and one code length; opened for another one it refuses.
2. `add` keeps a batch as a whole or not at all, through exceptions and kills, and shows it to
   searches only when it is stored. An entry of a study and modality that is already there replaces
   the former one, so an interrupted ingest is simply run again.
3. `remove_patient` takes out all entries of a patient at once, from memory, file and log.
4. Searches are exact under one total order (see `fedhash.search.hit`). They depend on the set of
   entries alone, not on the order of adding, nor on whether the archive was reopened.
5. Searches may run in any thread at any time; writers wait for each other.

    >>> with Archive(Path("archive.sqlite"), release_id, code_bits=64) as archive:
    ...     archive.add([Entry(site_handle(secret, "s1"), "p1", "report", code)])
    ...     archive.search(make_query(v, release_id=release_id, modality="report", k=10))
    [Match(handle='5c1f...', distance=3, score=29120)]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Bool

from fedhash.errors import ArchiveError, QueryError
from fedhash.index._bucket import rests_on_enough
from fedhash.index._shelf import HANDLE, Shelf
from fedhash.index._store import Description, Store
from fedhash.index.entry import HANDLE_BYTES, Entry
from fedhash.search.query import Query

__all__ = ["Archive", "Match"]


@dataclass(frozen=True, slots=True)
class Match:
    """One entry that a search found.

    Attributes:
        handle: The study's opaque name.
        distance: Hamming distance to the query in bits.
        score: Asymmetric similarity to the query (see `fedhash.search.query`).
    """

    handle: str
    distance: int
    score: int


@dataclass(frozen=True, slots=True)
class _Contents:
    """Everything in memory; replaced as a whole, never changed."""

    shelves: Mapping[str, Shelf]  # by modality; none is empty
    descriptions: Mapping[int, Description]


class Archive:
    """The archive at `path`, created where there is none.

    Args:
        path: The archive's file.
        release_id: The release whose model makes the codes.
        code_bits: Length of a code.

    Raises:
        ArchiveError: The file is damaged, no archive, of another release or in use.
        ModelError: `code_bits` is no length of a code.
    """

    def __init__(self, path: Path, release_id: str, code_bits: int) -> None:
        self.path = path
        self.release_id = release_id
        self.code_bits = code_bits
        self._writing = Lock()
        self._store = Store(path, release_id, code_bits)
        try:
            entries, descriptions = self._store.read()
        except BaseException:
            self.close()
            raise
        shelves = _by_modality(entries.sorted(), descriptions)
        self._contents = _Contents(shelves, descriptions)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; the archive is of no use afterwards."""
        self._store.close()

    def count(self, modality: str | None = None) -> int:
        """Entries of one modality or of all."""
        shelves = self._contents.shelves
        return sum(len(shelves[name]) for name in shelves if modality in (None, name))

    def handles(self, modality: str) -> set[str]:
        """Handles of the studies that have an entry in a modality."""
        shelf = self._contents.shelves.get(modality)
        if shelf is None:
            return set()
        return {shelf.handle(position) for position in range(len(shelf))}

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that any entry has, sorted."""
        descriptions = self._contents.descriptions.values()
        return tuple(sorted({name for each in descriptions for name in each.attributes}))

    def add(self, entries: Sequence[Entry]) -> None:
        """Store a batch; larger batches cost less an entry (10,000 and more are quick).

        Raises:
            ArchiveError: An entry is malformed or stands twice in the batch, or the file cannot be
                written; nothing of the batch is kept.
        """
        with self._writing:
            descriptions, batch = self._columns(entries)
            shelves, replaced = dict(self._contents.shelves), [batch.emptied()]
            for modality, new in _by_modality(batch.sorted(), descriptions).items():
                if (new.handles[1:] == new.handles[:-1]).any():
                    raise ArchiveError(
                        f"a batch holds a handle twice for {modality!r}; give a study one entry "
                        "a modality"
                    )
                old = shelves.get(modality, new.emptied())
                twins = old.holds(new.handles)
                if twins.any():
                    replaced.append(old.chosen(twins))
                    old = old.chosen(~twins)
                shelves[modality] = old.merged(new)
            self._change(shelves, descriptions, add=batch, remove=Shelf.together(replaced))

    def remove_patient(self, patient_id: str) -> int:
        """Remove a patient's entries from memory and, physically, from the file.

        Returns:
            How many entries there were.

        Raises:
            ArchiveError: The file cannot be written.
        """
        with self._writing:
            patient = self._store.patient_key(patient_id)
            return self._remove(lambda shelf: shelf.patients == patient)

    def remove_studies(self, handles: Collection[str]) -> int:
        """Remove studies' entries from memory and, physically, from the file.

        Returns:
            How many entries there were.

        Raises:
            ArchiveError: The file cannot be written.
        """
        wanted = np.frombuffer(b"".join(map(bytes.fromhex, handles)), dtype=HANDLE)
        with self._writing:
            return self._remove(lambda shelf: shelf.holds(wanted))

    def search(self, query: Query, smallest_bucket: int = 1) -> list[Match]:
        """The best entries under the total order, best first.

        Args:
            query: What is asked.
            smallest_bucket: Nothing is found where the entries within radius and filters, or what a
                filter takes away from them, are of fewer patients (see `fedhash.search.policy`).

        Raises:
            QueryError: The query is of another release or code length.
        """
        if query.release_id != self.release_id:
            raise QueryError(
                f"the query is of release {query.release_id}, this archive of release "
                f"{self.release_id}; encode the example with that release"
            )
        if 8 * len(query.code) != self.code_bits:
            raise QueryError(
                f"the query's code has {8 * len(query.code)} bits, expected {self.code_bits}"
            )
        contents = self._contents
        shelf = contents.shelves.get(query.modality)
        if shelf is None:
            return []
        matching = {
            name: _described(
                shelf,
                contents.descriptions,
                lambda d, name=name, value=value: d.attributes.get(name) == value,  # type: ignore[misc]
            )
            for name, value in query.filters.items()
        }
        allowed = np.logical_and.reduce(list(matching.values())) if matching else None
        radius = self.code_bits if query.radius is None else query.radius
        found = shelf.nearest(query.code, query.weights, query.k, radius, allowed)
        if smallest_bucket > 1 and not rests_on_enough(
            shelf, query, radius, smallest_bucket, matching, found[0]
        ):
            return []
        return [
            Match(shelf.handle(position), distance, score)
            for position, distance, score in zip(*(c.tolist() for c in found), strict=True)
        ]

    def _columns(self, entries: Sequence[Entry]) -> tuple[dict[int, Description], Shelf]:
        """The batch as columns, and all descriptions that are then known."""
        _check(entries, self.code_bits)
        descriptions = dict(self._contents.descriptions)
        numbers = {
            (modality, frozenset(attributes.items())): number
            for number, (modality, attributes) in descriptions.items()
        }
        next_number = max(descriptions, default=0) + 1
        patients: dict[str, int] = {}
        of_entry = []
        for entry in entries:
            if entry.patient_id not in patients:
                patients[entry.patient_id] = self._store.patient_key(entry.patient_id)
            key = (entry.modality, frozenset(entry.attributes.items()))
            if key not in numbers:
                numbers[key] = next_number
                descriptions[next_number] = Description(entry.modality, dict(entry.attributes))
                next_number += 1
            of_entry.append(numbers[key])
        batch = Shelf.of(
            [bytes.fromhex(entry.handle) for entry in entries],
            [entry.code for entry in entries],
            self._store.next_rows(len(entries)),
            [patients[entry.patient_id] for entry in entries],
            of_entry,
            code_bytes=self.code_bits // 8,
        )
        return descriptions, batch

    def _remove(self, chosen: Callable[[Shelf], Bool[np.ndarray, " N"]]) -> int:
        """Remove entries; returns how many there were."""
        shelves, removed = {}, []
        for modality, shelf in self._contents.shelves.items():
            theirs = chosen(shelf)
            removed.append(shelf.chosen(theirs))
            if not theirs.all():
                shelves[modality] = shelf.chosen(~theirs) if theirs.any() else shelf
        if not any(map(len, removed)):
            return 0
        gone = Shelf.together(removed)
        self._change(shelves, self._contents.descriptions, add=gone.emptied(), remove=gone)
        self._store.scrub()
        return len(gone)

    def _change(
        self,
        shelves: Mapping[str, Shelf],
        descriptions: Mapping[int, Description],
        *,
        add: Shelf,
        remove: Shelf,
    ) -> None:
        """Store the change, then let searches see it."""
        known = self._contents.descriptions
        forget = _orphans(remove, shelves)
        self._store.change(
            add=add,
            remove=remove,
            learn={n: d for n, d in descriptions.items() if n not in known},
            forget={n: d for n, d in known.items() if n in forget},
        )
        kept = {n: d for n, d in descriptions.items() if n not in forget}
        self._contents = _Contents(shelves, kept)


_HANDLE = re.compile(f"[0-9a-f]{{{2 * HANDLE_BYTES}}}")


def _check(entries: Sequence[Entry], code_bits: int) -> None:
    for entry in entries:
        if not _HANDLE.fullmatch(entry.handle):
            raise ArchiveError(
                f"the handle {entry.handle!r} is not {2 * HANDLE_BYTES} lowercase hex digits; "
                "make handles with site_handle"
            )
        if 8 * len(entry.code) != code_bits:
            raise ArchiveError(
                f"the code of {entry.handle} has {8 * len(entry.code)} bits, expected {code_bits}; "
                "encode it with the archive's release"
            )


def _described(
    shelf: Shelf, descriptions: Mapping[int, Description], wanted: Callable[[Description], bool]
) -> Bool[np.ndarray, " N"]:
    """Which entries have a description that is wanted."""
    table = np.zeros(max(descriptions, default=0) + 1, dtype=bool)
    for number, description in descriptions.items():
        table[number] = wanted(description)
    mask: Bool[np.ndarray, " N"] = table[shelf.descriptions]
    return mask


def _by_modality(shelf: Shelf, descriptions: Mapping[int, Description]) -> dict[str, Shelf]:
    """A shelf for each modality that has entries."""
    shelves = {}
    for modality in sorted({description.modality for description in descriptions.values()}):
        mask = _described(shelf, descriptions, lambda d, name=modality: d.modality == name)  # type: ignore[misc]
        if mask.any():
            shelves[modality] = shelf.chosen(mask)
    return shelves


def _orphans(removed: Shelf, shelves: Mapping[str, Shelf]) -> set[int]:
    """Descriptions of removed entries that no entry on the shelves has."""
    if not len(removed):
        return set()
    last = max(int(shelf.descriptions.max()) for shelf in (removed, *shelves.values()))
    used = np.zeros(last + 1, dtype=bool)
    for shelf in shelves.values():
        used[shelf.descriptions] = True
    return {number for number in set(removed.descriptions.tolist()) if not used[number]}
