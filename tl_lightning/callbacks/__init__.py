"""Callbacks that work in any LightningModule with one optimizer."""
