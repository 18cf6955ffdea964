"""Backbones: torchvision models with a new head, and their stages by depth."""
