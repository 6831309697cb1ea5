"""The registry file's tables, and the steps from each older version to this one. SQL only."""

SCHEMA_VERSION = 3

DOCUMENTS = """
CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of registration, never used again
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT,
    text TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    state TEXT NOT NULL,
    failure TEXT,
    pinned INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    expires_at REAL,
    last_used_at REAL,
    claim TEXT,            -- who compiles it, while its state is compiling
    claim_deadline REAL,   -- until when that one is believed to be alive
    UNIQUE (namespace, id)
);
CREATE TABLE chunks (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    token_ids BLOB NOT NULL,  -- little-endian int32
    key TEXT,                 -- of its KV, once it has been compiled
    PRIMARY KEY (document, position)
);
CREATE INDEX documents_by_expiry ON documents (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX chunks_by_key ON chunks (key);
"""

STORED_CHUNKS = """
CREATE TABLE stored_chunks (
    key TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,          -- of its file
    used INTEGER NOT NULL,               -- a later use has a larger number; no clock is asked
    dropped INTEGER NOT NULL DEFAULT 0   -- goes when its last lease ends
) WITHOUT ROWID;
CREATE INDEX stored_chunks_by_use ON stored_chunks (used);
CREATE INDEX stored_chunks_by_namespace ON stored_chunks (namespace, used);
CREATE TABLE leases (
    key TEXT NOT NULL,
    holder TEXT NOT NULL,
    deadline REAL NOT NULL,
    PRIMARY KEY (key, holder)
) WITHOUT ROWID;
CREATE INDEX leases_by_holder ON leases (holder);
"""

# What `expires_at` was set by, so that one from before the clock was set back is known.
TIME_TO_LIVE = "ALTER TABLE documents ADD COLUMN ttl_seconds REAL;"

# What brings a file of each version to the next one; version 0 is an empty file.
STEPS = {0: DOCUMENTS, 1: STORED_CHUNKS, 2: TIME_TO_LIVE}
