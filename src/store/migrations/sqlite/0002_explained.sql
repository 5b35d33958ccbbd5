-- What events that were removed said of rows: the newest up to the log's
-- beginning counts, what is behind it is being prepared.
CREATE TABLE explained (
    kind     TEXT    NOT NULL,
    region   TEXT    NOT NULL,
    account  TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    position INTEGER NOT NULL,
    -- 0 where the row was removed.
    version  INTEGER NOT NULL,
    mac      TEXT    NOT NULL,
    PRIMARY KEY (kind, region, account, id, position)
) STRICT, WITHOUT ROWID;
