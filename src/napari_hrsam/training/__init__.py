"""Training and evaluation: data, simulated clicks, losses, metrics, baselines."""
