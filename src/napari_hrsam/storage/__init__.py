"""Where pixels come from and where labels go; knows nothing of models."""
