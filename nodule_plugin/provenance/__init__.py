"""What says that an image is synthetic: a mark in its noise, a signed statement in its file (docs/provenance.md)."""
