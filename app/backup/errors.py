"""What may be wrong with a backup, its source or its target."""

from __future__ import annotations


class BackupError(Exception):
    """Nothing was backed up or restored; the message says why, and what to do."""
