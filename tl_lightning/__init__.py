"""Transfer learning in CNNs with PyTorch Lightning."""
