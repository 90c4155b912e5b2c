"""Records on disk until a receiver has them: a folder of segments, read in order and removed when they are read.

1. A record is its length (4 octets), the CRC-32 of what follows (4 octets), both big-endian, and a msgpack map.
   `append` returns after fsync, or leaves nothing behind.
2. A process appends only to segments that it began itself. What a crash tore off is the end of its segment, and nothing
   ever stands behind it.
3. A record whose CRC is wrong is passed over; where no length can be believed, the rest of the segment is. A segment
   of which something was passed over is kept under another name, for a person to look at.
4. What was read counts as taken with `taken`. A cursor that is lost or behind means that records are read again, never
   that one is missed: the receiver knows them by their ids.
5. One process has it at a time (the monitor's lock), and there one thread. It blocks: not for the hub.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

MAGIC = b"engspl1\n"
SEGMENT_BYTES = 4 * 1024 * 1024
LONGEST = 1024 * 1024  # octets of one record; more is no length but damage
_HEAD = struct.Struct(">II")
_CURSOR = "cursor"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in the spool: the segment's number, and an offset in it."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record, and the place behind it."""

    record: Mapping[str, Any]
    size: int
    end: Place


class Spool:
    """The spool of a folder, which is made (mode 0700) where there is none. Raises OSError."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.waiting = 0  # records that are not taken
        self.size = 0  # octets of all segments
        self.damaged = 0  # segments that were set aside
        self._segment_bytes = segment_bytes
        self._begun = 0  # the segment that this process appends to; 0: none yet
        self._bad: set[int] = set()  # segments in which something was passed over
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._segments = segments(folder)  # number -> size, in order
        self._read_to = read_cursor(folder)
        # Never a number that the cursor knows: it may be of a segment that is gone.
        self._next = max(self._read_to.segment, *self._segments, 0) + 1
        self.size = sum(self._segments.values())
        self._clear()
        self.waiting = sum(1 for _ in self._walk())

    def __repr__(self) -> str:
        return f"<Spool {self.folder} {self.waiting} wait>"

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep records; they are on disk when this returns. Where it raises, none is."""
        if not records:
            return
        data = b"".join(map(_packed, records))
        number = self._begun if self._segments.get(self._begun, self._segment_bytes) < self._segment_bytes else 0
        fresh = not number
        if fresh:
            number = self._begun = self._next
            self._next += 1
        before = self._segments.setdefault(number, 0)
        path = self.folder / _name(number)
        try:
            with open(path, "ab", opener=_private) as file:
                file.write((MAGIC if fresh else b"") + data)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                _sync_folder(self.folder)
        except BaseException:
            self._begun = 0  # what was begun and failed is cut off, and nothing more goes into that segment
            with suppress(OSError):
                os.truncate(path, before)
            raise
        self._segments[number] = before + len(data) + (len(MAGIC) if fresh else 0)
        self.size += self._segments[number] - before
        self.waiting += len(records)

    def peek(self, count: int, most_bytes: int) -> list[Spooled]:
        """The next records: so many at most, and no more octets than that, but one at least."""
        found: list[Spooled] = []
        total = 0
        for each in self._walk():
            total += each.size
            if found and (len(found) >= count or total > most_bytes):
                break
            found.append(each)
        if not found and self._segments:
            self._finish()
        return found

    def taken(self, records: Sequence[Spooled]) -> None:
        """The receiver has these, which `peek` gave; they are not read again."""
        if not records:
            return
        self._read_to = records[-1].end
        self.waiting = max(0, self.waiting - len(records))
        if self.waiting:
            self._save_cursor()
            self._clear()
        else:
            self._finish()

    # --- inside -----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Everything is read: no segment is needed any more."""
        self.waiting = self._begun = 0
        self._read_to = Place(self._next, 0)
        self._next += 1
        self._save_cursor()
        self._clear()

    def _save_cursor(self) -> None:
        """Not synced: a cursor that is lost costs a second reading."""
        temporary = self.folder / f"{_CURSOR}.new"
        temporary.write_text(_cursor_line(self._read_to), "ascii")
        temporary.replace(self.folder / _CURSOR)

    def _walk(self) -> Iterator[Spooled]:
        """The records from where the reader stands."""
        for number in [each for each in self._segments if each >= self._read_to.segment]:
            start = self._read_to.offset if number == self._read_to.segment else 0
            try:
                data = (self.folder / _name(number)).read_bytes()[: self._segments[number]]
            except FileNotFoundError:  # somebody has removed it
                continue
            yield from self._records(number, data, max(start, len(MAGIC)))

    def _records(self, number: int, data: bytes, at: int) -> Iterator[Spooled]:
        if data and not data.startswith(MAGIC[: len(data)]):
            self._bad.add(number)
            return
        while at + _HEAD.size <= len(data):
            length, crc = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + length
            if length > LONGEST or end > len(data):
                break
            payload = data[at + _HEAD.size : end]
            record = _unpacked(payload) if zlib.crc32(payload) == crc else None
            if record is None:
                self._bad.add(number)
            else:
                yield Spooled(record, len(payload), Place(number, end))
            at = end
        if at < len(data):
            self._bad.add(number)

    def _clear(self) -> None:
        """Remove the segments that are read."""
        for number in [each for each in self._segments if each < self._read_to.segment]:
            path = self.folder / _name(number)
            with suppress(FileNotFoundError):
                if number in self._bad:
                    self.damaged += 1
                    path.rename(path.with_suffix(".damaged"))
                else:
                    path.unlink()
            self.size -= self._segments.pop(number)
            self._bad.discard(number)


def segments(folder: Path) -> dict[int, int]:
    """The segments of a folder with their sizes, in order."""
    found = {}
    for path in folder.glob("*.spool"):
        with suppress(ValueError, FileNotFoundError):
            found[int(path.stem)] = path.stat().st_size
    return dict(sorted(found.items()))


def _name(number: int) -> str:
    return f"{number:012d}.spool"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _packed(record: Mapping[str, Any]) -> bytes:
    payload: bytes = msgpack.packb(dict(record), unicode_errors="replace")
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _unpacked(payload: bytes) -> Mapping[str, Any] | None:
    try:
        record = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException):
        return None
    return record if isinstance(record, dict) else None


def read_cursor(folder: Path) -> Place:
    """Up to where a folder is read; its beginning, where the cursor is missing or not whole."""
    try:
        text = (folder / _CURSOR).read_text("ascii")
        place = Place(*map(int, text.split()[:2]))
    except (OSError, ValueError, TypeError):
        return Place(0, 0)
    return place if text == _cursor_line(place) else Place(0, 0)


def _cursor_line(place: Place) -> str:
    text = f"{place.segment} {place.offset}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
