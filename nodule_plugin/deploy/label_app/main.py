"""Where MONAI Label looks for a class that is derived from MONAILabelApp."""

from __future__ import annotations

from nodule_plugin.deploy.label.app import NoduleApp

__all__ = ["NoduleApp"]
