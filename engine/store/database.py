"""The files of the store: made, recognised and opened. Errors say which file, why and what to do.

1. A file is mode 0600 from its first byte on, and its -wal and -shm with it.
2. A file that is not ours, or of another version, is refused before anything in it is changed. One of an older version
   for which there are upgrades is brought up, all at once or not at all.
3. These functions run on the writer's thread, or in a command line that has no greenlets.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

JOURNAL = "job journal"  # the kind of file that a job writes; the identity state is the other one
BUSY_S = 5.0  # another process (a command line, a second identity) may hold the write lock that long
WAL_LIMIT_BYTES = 64 * 1024 * 1024  # the log is cut back to this after a burst

REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space there and start again with --resume",
    sqlite3.SQLITE_IOERR: "check the disk and its mount, then start again with --resume",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists and is writable for this user",
    sqlite3.SQLITE_PERM: "make the file and its folder writable for this user",
    sqlite3.SQLITE_CORRUPT: "restore it from a copy, or name another file",
    sqlite3.SQLITE_NOTADB: "name another file",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_S:.0f} s; stop that one or try again",
}


class StoreError(Exception):
    """A file of the store can't be opened, read or written. The message says which, why and what to do."""

    def __init__(self, path: Path, problem: str, remedy: str, code: int = 0) -> None:
        super().__init__(path, problem, remedy, code)
        self.path, self.problem, self.remedy, self.code = path, problem, remedy, code

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}: {self.remedy}."


def open_database(
    path: Path, schema: str, kind: str, version: int | None, create: bool, upgrades: Sequence[str] = ()
) -> sqlite3.Connection:
    """See `Writer.open`. The connection commits by itself outside explicit transactions."""
    versions = None if version is None else range(version - len(upgrades), version + 1)
    _make_file(path, create=create)
    try:
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, cached_statements=256)
    except sqlite3.Error as error:
        raise store_error(path, error) from error
    try:
        found = _check(connection, path, kind, versions)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # an erased address must not live on in a free page
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        if found is None or (version is not None and found < version):
            connection.execute("BEGIN IMMEDIATE")
            found = _check(connection, path, kind, versions)  # another process may have been faster
            for script in (schema, *upgrades) if found is None else upgrades[len(upgrades) - (version or 0) + found :]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_application_id(kind)}")
            connection.execute(f"PRAGMA user_version={version or 0}")
            connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise store_error(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def open_read_only(path: Path, kind: str) -> Iterator[sqlite3.Connection]:
    """A connection that can't write, for command lines: it disturbs no running job. Raises StoreError."""
    _make_file(path, create=False)
    connection = None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
        connection.isolation_level = None
        if _check(connection, path, kind, None) is None:
            raise StoreError(path, f"is empty and no {kind}", "name another file")
        yield connection
    except sqlite3.Error as error:
        raise store_error(path, error) from error
    finally:
        if connection is not None:
            connection.close()


def _make_file(path: Path, *, create: bool) -> None:
    """The file is made before SQLite sees it, so that it is never readable by others, nor are -wal and -shm."""
    try:
        if create:
            # O_EXCL: closing a descriptor of a file in use would drop this process' POSIX locks on it.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        elif not path.is_file():
            raise StoreError(path, "there is no such file", "name one that exists")
    except FileExistsError:
        pass
    except OSError as error:
        raise store_error(path, error) from error


def _check(connection: sqlite3.Connection, path: Path, kind: str, versions: range | None) -> int | None:
    """The version of the file; None: it is new. Raises StoreError when it is somebody else's, or of another version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not (application or found or tables):
        return None
    if application != _application_id(kind):
        raise StoreError(path, f"is a SQLite file, but no {kind} of this engine", "name another file")
    if versions is not None and found not in versions:
        remedy = "use the engine that wrote it, or name another file"
        raise StoreError(path, f"has the {kind} format {found}, and this engine writes {versions[-1]}", remedy)
    return int(found)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The switch needs the file alone and, unlike a transaction, does not wait for its turn."""
    for attempt in range(20):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_BUSY or attempt == 19:
                raise
            connection.execute("BEGIN IMMEDIATE")  # waits until the other one is done
            connection.execute("ROLLBACK")
        else:
            return


def _statements(schema: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would end the transaction."""
    statement = ""
    for line in schema.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _application_id(kind: str) -> int:
    return zlib.crc32(kind.encode()) & 0x7FFFFFFF


def code_of(error: sqlite3.Error) -> int:
    """The primary SQLite code of an error; 0 for errors of the binding itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def store_error(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """What went wrong with this file, with a remedy."""
    if isinstance(error, OSError):
        return StoreError(path, error.strerror or str(error), "make its folder, or make it writable for this user")
    code = code_of(error)
    return StoreError(path, str(error), REMEDIES.get(code, "this is a fault of the engine; please report it"), code)


def again(error: Exception) -> Exception:
    """The same error anew: each who meets it gets a traceback of its own."""
    return type(error)(*error.args)
