-- The tables of cachefs.sqlite3. This file is their canonical description. Each table has one writing module.

-- What holds for the whole cache directory. Written by db.py.
--   schema        version of these tables
--   volume        random id of this cache directory
--   sessions      JSON: the ids of the present session and the one before, see directory.py
--   ended         id of the last session that came to its end
--   ended_ns      no row tells of a later moment, if that was the last session
--   clock         JSON: the boot in which the present session began, and by what the clock was ahead of that boot's own
--   source        which store it caches; another source is refused
--   capabilities  JSON: what the last probe of the store found, shown by `status`
--   pins          JSON: names, by the number of their directory and their component, of which a pinned file has lost its
--                 name to what the store has: whatever the store shows under one is pinned; written by inodes.py
--   limit         bytes that the last mount let the cache take
--   policy        the policy that the columns `queue`, `score` and `chances` of `entries` are for; written by order.py
--   tables        what stands for how the tables and indexes are made, words that SQLite believes; written by db.py
--   inflation     GDSF's clock: the score of what it evicted last; written by order.py
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Files and directories, each under one name (an object store has no hard links, so a name is a column).
-- Written by inodes.py.
CREATE TABLE inodes (
    ino          INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: the kernel may still hold it. The root is 1
    parent       INTEGER REFERENCES inodes,         -- NULL: the root, or unlinked while open
    name         BLOB,                              -- as the kernel spells it; NULL exactly when parent is
    component    BLOB NOT NULL,                     -- its part of the object key (see core/keys.py)
    kind         TEXT NOT NULL CHECK (kind IN ('file', 'dir', 'symlink', 'fifo', 'socket')),
    size         INTEGER NOT NULL,                  -- bytes; 0 for directories
    mode         INTEGER,                           -- permission bits; NULL: the store does not say, defaults apply
    uid          INTEGER,                           -- NULL: likewise
    gid          INTEGER,                           -- NULL: likewise
    atime_ns     INTEGER NOT NULL,
    mtime_ns     INTEGER NOT NULL,
    ctime_ns     INTEGER NOT NULL,
    etag         TEXT,                              -- version last seen at the store (of a directory: of its marker); NULL: not stored
    content_type TEXT,                              -- NULL: not told
    meta         TEXT,                              -- JSON: all user metadata of that version; NULL: only a listing was seen
    stored_ns    INTEGER,                           -- Last-Modified of that version; NULL: not told
    checked_ns   INTEGER NOT NULL,                  -- when the store, or a change of ours, last confirmed this row
    listed_ns    INTEGER,                           -- directories: when all of it was last listed; NULL: never
    pinned       INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)), -- files: 1: the operator wants it kept here, cached or not
    is_md5       INTEGER NOT NULL DEFAULT 0 CHECK (is_md5 IN (0, 1)) -- 1: by the store's word, etag is the MD5 of all bytes
) STRICT;
CREATE UNIQUE INDEX inodes_by_name ON inodes (parent, name);
CREATE INDEX inodes_by_parent ON inodes (parent); -- in order of ino: the cookie of readdir
CREATE INDEX inodes_by_component ON inodes (parent, component); -- a key looked up from the top
CREATE INDEX inodes_pinned ON inodes (ino, size) WHERE pinned = 1;

-- Cached bytes: at most one entry for an inode, holding one version. Written by cache.py; while an entry is not in use,
-- what the order of eviction needs (queue, score, chances) by order.py.
CREATE TABLE entries (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- also the name of its file below data/
    ino     INTEGER NOT NULL UNIQUE REFERENCES inodes ON DELETE RESTRICT,
    etag    TEXT,                               -- the base: the version these bytes are, or grew from; NULL: none
    size    INTEGER NOT NULL,
    extents BLOB NOT NULL,                      -- which bytes are here, as core/extents.py writes them
    cost    INTEGER NOT NULL,                   -- bytes of disk that the file takes
    used_ns INTEGER NOT NULL,                   -- when it was last opened or closed
    sums    BLOB NOT NULL DEFAULT x'',          -- CRC-32 of its pieces, as core/sums.py writes them; of a dirty entry: of its acknowledged bytes, if any
    made_ns  INTEGER NOT NULL DEFAULT 0,        -- when it was made, empty
    hits     INTEGER NOT NULL DEFAULT 0,        -- how often programs have opened it since
    fetch_ns INTEGER NOT NULL DEFAULT 0,        -- for how long requests brought its bytes, side by side counted once; 0: none did
    pinned   INTEGER NOT NULL DEFAULT 0,        -- that of its inode, kept equal by the triggers below
    queue    INTEGER NOT NULL DEFAULT 0,        -- S3-FIFO: 0 small, 1 main. Else 0
    score    REAL NOT NULL DEFAULT 0,           -- within a queue the lowest goes first; what it means is the policy's
    chances  INTEGER NOT NULL DEFAULT 0         -- S3-FIFO: hits in this queue, 3 at most. Else 0
) STRICT;

-- Victims are read from its beginning, so that no eviction looks at all entries.
CREATE INDEX entries_by_score ON entries (queue, score, id, cost) WHERE pinned = 0;

-- An entry's copy of the pin, without which the index could not leave pinned ones out.
CREATE TRIGGER entries_made AFTER INSERT ON entries
BEGIN
    UPDATE entries SET pinned = 1 WHERE id = new.id AND ino IN (SELECT ino FROM inodes WHERE pinned = 1);
END;
CREATE TRIGGER inodes_pinned_changed AFTER UPDATE OF pinned ON inodes
BEGIN
    UPDATE entries SET pinned = new.pinned WHERE ino = new.ino;
END;

-- What programs have opened, whether or not it is cached. Written by history.py, some seconds later; goes with the inode.
CREATE TABLE accesses (
    ino     INTEGER PRIMARY KEY REFERENCES inodes ON DELETE CASCADE,
    opens   INTEGER NOT NULL,
    used_ns INTEGER NOT NULL                    -- when it was opened last, by the clock on the wall
) STRICT;

CREATE INDEX accesses_by_use ON accesses (used_ns); -- those at its beginning are forgotten where there are too many

-- The same for each of the last days.
CREATE TABLE access_days (
    ino   INTEGER NOT NULL REFERENCES accesses ON DELETE CASCADE,
    day   INTEGER NOT NULL,                     -- days since the first of January of the year 1, which is day 1
    opens INTEGER NOT NULL,
    PRIMARY KEY (ino, day)
) STRICT, WITHOUT ROWID;

CREATE INDEX access_days_by_day ON access_days (day);

-- Promises to the store: an entry is dirty exactly while it has a row here. Written by journal.py.
CREATE TABLE intents (
    entry  INTEGER PRIMARY KEY REFERENCES entries ON DELETE RESTRICT,
    token  TEXT NOT NULL UNIQUE,    -- one for the life of the row: makes repeats harmless
    state  TEXT NOT NULL CHECK (state IN ('open', 'queued', 'uploading', 'parked')),
    boot   TEXT,                    -- boot id while the bytes may be in the page cache only; NULL: synced
    due_ns INTEGER NOT NULL,
    tries  INTEGER NOT NULL,
    sent   INTEGER NOT NULL,        -- 1 once an upload was begun: the store may have it, whatever it answered
    error  TEXT                     -- the last reason, for the operator
) STRICT;

-- Renames that copy and delete at the store. Written by journal.py.
--   copying   the sources are whole: a crash is undone by removing the copies
--   deleting  the copies are whole: a crash is finished by removing the sources
CREATE TABLE moves (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    batch    TEXT NOT NULL,         -- one for each rename
    state    TEXT NOT NULL CHECK (state IN ('copying', 'deleting')),
    source   BLOB NOT NULL,         -- key
    target   BLOB NOT NULL,         -- key
    etag     TEXT NOT NULL,         -- version of the source
    replaces TEXT,                  -- version of the target before; NULL: there was none
    made     TEXT                   -- version of the copy; NULL: the store has not answered yet
) STRICT;

CREATE INDEX moves_by_source ON moves (source);

-- What large uploads and copies have at the store before they are objects. Written by journal.py. A row comes before the
-- first byte is sent, and goes when the object stands or nothing is left of it.
CREATE TABLE works (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    key  BLOB NOT NULL,             -- of the object that it is meant for
    work TEXT NOT NULL UNIQUE       -- what it is, in the store's own words
) STRICT;

CREATE INDEX works_by_key ON works (key);

-- Conflicts that were met, for `status`. Written by journal.py.
CREATE TABLE conflicts (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    when_ns INTEGER NOT NULL,
    key     BLOB NOT NULL,
    outcome TEXT NOT NULL           -- in words: what was kept where
) STRICT;

-- MD5s of objects whose ETag is none. Written by md5s.py: by the daemon, and where none lives by any other process, in short
-- transactions. Nothing that a mount promises depends on it. A row tells of the version (etag, size) only: where the store
-- has another one by now, it is of no use, and does no harm.
CREATE TABLE md5s (
    remote     BLOB NOT NULL,       -- which store, as `cachefs cache` names it; empty: the one in `source`
    bucket     BLOB NOT NULL,       -- bytes, as key is, so that `%`, `_`, case and unicode are what they are
    key        BLOB NOT NULL,       -- as the store has it: of a mount of s3://b/prefix it begins with the prefix
    etag       TEXT NOT NULL,
    size       INTEGER NOT NULL,
    md5        TEXT NOT NULL,       -- in hexadecimal
    how        TEXT NOT NULL,       -- how it is known: uploaded, read, told, migrated, given
    made_ns    INTEGER NOT NULL,    -- when it was first known of this version
    updated_ns INTEGER NOT NULL,    -- when it was last said
    PRIMARY KEY (bucket, key, remote)
) STRICT, WITHOUT ROWID;
