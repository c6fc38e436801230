"""Marks in the pixels: they say that an image is synthetic when all metadata is gone (docs/provenance.md)."""
