-- A row is named by kind, Region, account and id. Its body is opaque here.
CREATE TABLE row (
    kind    TEXT    NOT NULL,
    region  TEXT    NOT NULL,
    account TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    parent  TEXT,
    due_ms  INTEGER,
    version INTEGER NOT NULL,
    body    TEXT    NOT NULL,
    mac     BLOB    NOT NULL,
    PRIMARY KEY (kind, region, account, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX row_by_parent ON row (kind, region, account, parent, id) WHERE parent IS NOT NULL;
CREATE INDEX row_by_id ON row (kind, region, id);
CREATE INDEX row_by_due ON row (kind, due_ms) WHERE due_ms IS NOT NULL;

-- position is writer * 2^48 + sequence: the rowid itself is the order of the
-- log, so that appending touches one B-tree and nothing else.
CREATE TABLE event (
    position INTEGER PRIMARY KEY,
    id       TEXT    NOT NULL,
    time_ms  INTEGER NOT NULL,
    record   TEXT    NOT NULL,
    effects  TEXT    NOT NULL,
    hash     BLOB    NOT NULL
) STRICT;

-- Signatures of the log's head.
CREATE TABLE head (
    position  INTEGER PRIMARY KEY,
    hash      BLOB    NOT NULL,
    time_ms   INTEGER NOT NULL,
    signature BLOB    NOT NULL
) STRICT;

-- Who appended. The newest is the one that appends now; a restore adds one,
-- so that a position is never used for two events.
CREATE TABLE writer (
    id              INTEGER PRIMARY KEY,
    -- The position after which its log goes on, NULL at the very beginning.
    follows         INTEGER,
    started_ms      INTEGER NOT NULL,
    -- When the database was restored, NULL for a writer of a new database.
    restored_ms     INTEGER,
    -- When what a restore asks for was done.
    acknowledged_ms INTEGER
) STRICT;
