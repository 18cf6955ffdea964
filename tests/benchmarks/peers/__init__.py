"""One adapter for each way to train the same network: this package, its peers, and a bare PyTorch loop."""
