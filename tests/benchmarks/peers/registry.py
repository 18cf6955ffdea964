"""The peers by name, those whose package is installed."""

from __future__ import annotations

import importlib
import importlib.util

from peers.job import Peer

_ADAPTERS = {
    "lightning": ("lightning", "peers.lightning_finetuning", "LightningFinetuning"),
    "finetuning-scheduler": ("finetuning_scheduler", "peers.finetuning_scheduler", "FinetuningSchedulerPeer"),
    "fastai": ("fastai", "peers.fastai_", "FastAI"),
    "timm": ("timm", "peers.timm_", "Timm"),
    "bare": ("torch", "peers.bare", "Bare"),
    "bare-channels-last": ("torch", "peers.bare", "BareChannelsLast"),
    "ours-study": ("tl_lightning", "peers.ours_study", "OursStudy"),
    "ours": ("tl_lightning", "peers.ours", "Ours"),
}


def peer_class(name: str) -> type[Peer] | None:
    """Return the adapter of a peer, or None if its package is not installed."""
    package, module, attribute = _ADAPTERS[name]
    if importlib.util.find_spec(package) is None:
        return None
    return getattr(importlib.import_module(module), attribute)
