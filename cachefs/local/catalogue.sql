-- The database of a CloudManager. May be made beforehand: sqlite3 files.sqlite3 < schema.sql
-- A program that finds an empty database makes these tables itself.

CREATE TABLE IF NOT EXISTS files (        -- every file that was ever uploaded, or loaded from a dump
    hash     TEXT PRIMARY KEY,            -- SHA-256 of the bytes, 64 hexadecimal digits: also the name in the storage
    name     TEXT NOT NULL,               -- the last part of the path that it was uploaded from first
    size     INTEGER NOT NULL,
    added_ns INTEGER NOT NULL,            -- since the epoch; what waits longest is uploaded first
    dump     TEXT                         -- the id of the dump that it was loaded with; NULL: none has it yet
);

CREATE TABLE IF NOT EXISTS copies (       -- where each file lives
    hash      TEXT NOT NULL REFERENCES files,
    remote    TEXT NOT NULL,              -- as it is configured: s3://bucket/prefix
    key       TEXT NOT NULL,              -- of the object, below the prefix
    etag      TEXT,                       -- its version; NULL: not known
    state     TEXT NOT NULL CHECK (state IN
                  ('stored', 'damaged', 'missing', 'said')),  -- as it was seen last; said: by a dump, and not seen yet
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (hash, remote)
);

CREATE TABLE IF NOT EXISTS held (         -- the files whose bytes are in the storage
    hash     TEXT PRIMARY KEY REFERENCES files,
    size     INTEGER NOT NULL,
    inode    INTEGER NOT NULL,            -- the file as it was when its bytes were verified last:
    mtime_ns INTEGER NOT NULL             -- while both are the same, they still are
);

CREATE TABLE IF NOT EXISTS parts (        -- room that is taken by bytes on their way into the storage
    name TEXT PRIMARY KEY,                -- of the file that they are written to; who holds its lock is at work
    size INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS traffic (
    month     TEXT NOT NULL,              -- 2026-11
    direction TEXT NOT NULL CHECK (direction IN ('incoming', 'outgoing')),   -- from remotes, to remotes
    bytes     INTEGER NOT NULL,
    PRIMARY KEY (month, direction)
);

-- Whatever a program does: the only copy of a file stays.
CREATE TRIGGER IF NOT EXISTS held_until_stored BEFORE DELETE ON held
WHEN NOT EXISTS (SELECT 1 FROM copies WHERE hash = OLD.hash AND state = 'stored')
BEGIN
    SELECT RAISE(ABORT, 'not uploaded yet');
END;
