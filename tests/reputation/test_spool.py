"""Laws of the spool: what was appended is read once it was, in order, whatever a crash or a disk does to its files."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reputation.spool import MAGIC, Spool

ALL = 10**9


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"o-{number}", "seq": number, "kind": "check", **more}


def filled(folder: Path, count: int, **options: Any) -> Spool:
    spool = Spool(folder, **options)
    for number in range(1, count + 1):
        spool.append([record(number)])
    return spool


def numbers(spool: Spool, count: int = 1000) -> list[int]:
    return [each.record["seq"] for each in spool.peek(count, ALL)]


def newest(folder: Path) -> Path:
    return max(folder.glob("*.spool"))


def test_a_record_has_its_length_and_crc_before_it(tmp_path: Path) -> None:
    """The format is a contract with other programs: big-endian length and CRC-32, then a msgpack map."""
    filled(tmp_path, 1)
    data = newest(tmp_path).read_bytes()
    length, crc = struct.unpack_from(">II", data, len(MAGIC))
    payload = data[len(MAGIC) + 8 :]
    assert (length, crc) == (len(payload), zlib.crc32(payload))
    assert msgpack.unpackb(payload) == record(1)
    assert newest(tmp_path).stat().st_mode & 0o077 == 0


def test_records_are_read_in_order_until_they_are_taken(tmp_path: Path) -> None:
    """A look changes nothing; what is taken does not come back, in this process or the next."""
    spool = filled(tmp_path, 5, segment_bytes=100)  # several segments
    assert numbers(spool) == numbers(spool) == [1, 2, 3, 4, 5]
    spool.taken(spool.peek(2, ALL))
    assert (numbers(spool), spool.waiting) == ([3, 4, 5], 3)
    again = Spool(tmp_path)
    assert (numbers(again), again.waiting) == ([3, 4, 5], 3)
    again.append([record(6)])
    assert numbers(again) == [3, 4, 5, 6]


def test_what_is_read_leaves_no_file_behind(tmp_path: Path) -> None:
    """An empty spool is an empty folder, but for the cursor; and it goes on after that."""
    spool = filled(tmp_path, 3)
    spool.taken(spool.peek(10, ALL))
    assert (list(tmp_path.glob("*.spool")), spool.waiting, spool.size) == ([], 0, 0)
    again = Spool(tmp_path)
    again.append([record(4)])
    assert numbers(again) == [4]
    assert numbers(Spool(tmp_path)) == [4]


def test_a_batch_is_bounded_by_count_and_size_and_is_never_empty(tmp_path: Path) -> None:
    """A record larger than a batch goes alone."""
    spool = Spool(tmp_path)
    spool.append([record(1, detail="x" * 1000), record(2), record(3)])
    sizes = [each.size for each in spool.peek(10, ALL)]
    assert [len(spool.peek(2, ALL)), len(spool.peek(10, 100)), len(spool.peek(10, sum(sizes[:2])))] == [2, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 8, 12, 30])
def test_what_a_crash_tore_off_is_the_end_and_nothing_else(tmp_path: Path, cut: int) -> None:
    """All whole records before it are read, and what the next process appends behind it, too."""
    filled(tmp_path, 3)
    path = newest(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    again = Spool(tmp_path)
    again.append([record(4)])
    assert numbers(again) == [1, 2, 4]
    again.taken(again.peek(10, ALL))
    assert numbers(Spool(tmp_path)) == []


def test_a_record_that_rotted_is_passed_over_and_its_file_kept(tmp_path: Path) -> None:
    """The CRC says so; the records beside it are whole."""
    filled(tmp_path, 3)
    path = newest(tmp_path)
    data = bytearray(path.read_bytes())
    middle = len(MAGIC) + (len(data) - len(MAGIC)) // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
    again = Spool(tmp_path)
    assert numbers(again) == [1, 3]
    again.taken(again.peek(10, ALL))
    assert again.damaged == 1
    assert [each.suffix for each in tmp_path.glob("0*")] == [".damaged"]


def test_a_length_that_nobody_wrote_ends_its_segment_alone(tmp_path: Path) -> None:
    """It allocates nothing, and the next segment is read."""
    filled(tmp_path, 1)
    path = newest(tmp_path)
    path.write_bytes(path.read_bytes() + struct.pack(">II", 0xFFFFFFFF, 0) + b"rest")
    again = Spool(tmp_path)
    again.append([record(2)])
    assert numbers(again) == [1, 2]


@pytest.mark.parametrize("cursor", ["", "garbage", "7", "1 99999999 00000000", "999 0 00000000"])
def test_a_lost_cursor_means_twice_and_never_not_at_all(tmp_path: Path, cursor: str) -> None:
    """A record is known by its id: twice is harmless."""
    spool = filled(tmp_path, 3)
    spool.taken(spool.peek(1, ALL))
    (tmp_path / "cursor").write_text(cursor)
    assert numbers(Spool(tmp_path)) == [1, 2, 3]


def test_a_cursor_older_than_the_segments_hides_nothing(tmp_path: Path) -> None:
    """After a loss of power the cursor may be of a segment that is gone: its number is never used again."""
    spool = filled(tmp_path, 3)
    spool.taken(spool.peek(2, ALL))
    old = (tmp_path / "cursor").read_text()
    spool.taken(spool.peek(2, ALL))
    (tmp_path / "cursor").write_text(old)
    again = Spool(tmp_path)
    again.append([record(4)])
    assert numbers(again) == numbers(Spool(tmp_path)) == [4]


def test_an_append_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """All of a batch or none of it; and the spool goes on."""
    spool = filled(tmp_path, 1)
    with pytest.raises(TypeError):
        spool.append([record(2), record(3, bad=object())])
    spool.append([record(4)])
    assert numbers(spool) == numbers(Spool(tmp_path)) == [1, 4]
    assert spool.waiting == 2


def test_a_folder_that_cant_be_written_is_an_os_error(tmp_path: Path) -> None:
    """The caller says where, and tries again."""
    (tmp_path / "push").write_text("a file")
    with pytest.raises(OSError, match="push"):
        Spool(tmp_path / "push")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 60))
def test_any_walk_loses_nothing(tmp_path_factory: pytest.TempPathFactory, steps: list[int], tear: int) -> None:
    """Append, take, restart, tear off and restart in any order: each record that append returned for is read."""
    folder = tmp_path_factory.mktemp("spool")
    spool, made, seen = Spool(folder, segment_bytes=80), 0, set()
    for step in steps:
        if step <= 1:
            made += 1
            spool.append([record(made)])
        elif step == 2:
            batch = spool.peek(2, ALL)
            seen |= {each.record["seq"] for each in batch}
            spool.taken(batch)
        else:
            if step == 4:  # the next append was cut short
                torn = Spool(folder, segment_bytes=80)
                torn.append([record(999, pad="x" * 40)])
                os.truncate(newest(folder), max(0, newest(folder).stat().st_size - 1 - tear))
            spool = Spool(folder, segment_bytes=80)
    seen |= {each.record["seq"] for each in spool.peek(1000, ALL)}
    assert seen - {999} == set(range(1, made + 1))
