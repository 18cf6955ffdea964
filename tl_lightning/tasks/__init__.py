"""LightningModules for the tasks."""
