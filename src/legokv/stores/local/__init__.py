"""Documents and chunks on one machine: a SQLite registry and a folder of chunk files."""
