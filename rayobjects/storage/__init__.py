"""Layer 2, the write-through storage: journal, checkpoint, recovery. Never imports Ray."""
