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

_ORDER: Final = """
ALTER TABLE inodes ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1));
CREATE INDEX inodes_pinned ON inodes (ino, size) WHERE pinned = 1;
DROP INDEX entries_by_use;
ALTER TABLE entries ADD COLUMN made_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN hits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN fetch_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN queue INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN score REAL NOT NULL DEFAULT 0;
ALTER TABLE entries ADD COLUMN chances INTEGER NOT NULL DEFAULT 0;
UPDATE entries SET made_ns = used_ns, hits = 1, score = used_ns / 1e9;
CREATE INDEX entries_by_score ON entries (queue, score, id, cost) WHERE pinned = 0;
CREATE TRIGGER entries_made AFTER INSERT ON entries
BEGIN
    UPDATE entries SET pinned = 1 WHERE id = new.id AND ino IN (SELECT ino FROM inodes WHERE pinned = 1);
END;
CREATE TRIGGER inodes_pinned_changed AFTER UPDATE OF pinned ON inodes
BEGIN
    UPDATE entries SET pinned = new.pinned WHERE ino = new.ino;
END
"""

_HISTORY: Final = """
CREATE TABLE accesses (
    ino     INTEGER PRIMARY KEY REFERENCES inodes ON DELETE CASCADE,
    opens   INTEGER NOT NULL,
    used_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX accesses_by_use ON accesses (used_ns);
CREATE TABLE access_days (
    ino   INTEGER NOT NULL REFERENCES accesses ON DELETE CASCADE,
    day   INTEGER NOT NULL,
    opens INTEGER NOT NULL,
    PRIMARY KEY (ino, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX access_days_by_day ON access_days (day)
"""

_MD5S: Final = """
ALTER TABLE inodes ADD COLUMN is_md5 INTEGER NOT NULL DEFAULT 0 CHECK (is_md5 IN (0, 1));
CREATE TABLE md5s (
    remote     BLOB NOT NULL,
    bucket     BLOB NOT NULL,
    key        BLOB NOT NULL,
    etag       TEXT NOT NULL,
    size       INTEGER NOT NULL,
    md5        TEXT NOT NULL,
    how        TEXT NOT NULL,
    made_ns    INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    PRIMARY KEY (bucket, key, remote)
) STRICT, WITHOUT ROWID
"""

MIGRATIONS: Final[Mapping[int, str]] = {
    1: _FIFOS_AND_SOCKETS,
    2: _WORKS,
    3: _ORDER,
    4: _HISTORY,
    5: _MD5S,
}
"""Statements that lead from each version to the next. None is ever changed: older files are still about."""
