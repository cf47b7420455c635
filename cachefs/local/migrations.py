"""How tables that an older cachefs made become those of ``schema.sql``, one version at a time."""

from collections.abc import Mapping
from typing import Final

_FIFOS_AND_SOCKETS: Final = """
CREATE TABLE inodes_new (
    ino          INTEGER PRIMARY KEY AUTOINCREMENT,
    parent       INTEGER REFERENCES inodes,
    name         BLOB,
    component    BLOB NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('file', 'dir', 'symlink', 'fifo', 'socket')),
    size         INTEGER NOT NULL,
    mode         INTEGER,
    uid          INTEGER,
    gid          INTEGER,
    atime_ns     INTEGER NOT NULL,
    mtime_ns     INTEGER NOT NULL,
    ctime_ns     INTEGER NOT NULL,
    etag         TEXT,
    content_type TEXT,
    meta         TEXT,
    stored_ns    INTEGER,
    checked_ns   INTEGER NOT NULL,
    listed_ns    INTEGER
) STRICT;
INSERT INTO inodes_new
    SELECT ino, parent, name, component, kind, size, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, etag,
        content_type, meta, NULL, checked_ns, listed_ns FROM inodes;
UPDATE sqlite_sequence SET seq = (SELECT max(seq) FROM sqlite_sequence WHERE name LIKE 'inodes%')
    WHERE name = 'inodes_new';
DROP TABLE inodes;
ALTER TABLE inodes_new RENAME TO inodes;
CREATE UNIQUE INDEX inodes_by_name ON inodes (parent, name);
CREATE INDEX inodes_by_parent ON inodes (parent);
CREATE INDEX inodes_by_component ON inodes (parent, component);
ALTER TABLE moves ADD COLUMN made TEXT;
ALTER TABLE entries ADD COLUMN sums BLOB NOT NULL DEFAULT x''
"""

_WORKS: Final = """
CREATE TABLE works (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    key  BLOB NOT NULL,
    work TEXT NOT NULL UNIQUE
) STRICT;
CREATE INDEX works_by_key ON works (key)
"""

MIGRATIONS: Final[Mapping[int, str]] = {1: _FIFOS_AND_SOCKETS, 2: _WORKS}
"""Statements that lead from each version to the next. None is ever changed: older files are still about."""
