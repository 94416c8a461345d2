"""Finished images: an object store and signed URLs. No HTTP, no Ray."""
