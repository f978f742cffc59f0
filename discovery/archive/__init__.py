"""The archive: the ledger's entries on disk, in blocks that are chained by SHA-256. docs/ledger.md has the format."""
