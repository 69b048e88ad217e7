"""Pictures, one file each, drawn from files that are already on disk."""
