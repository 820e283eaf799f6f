"""The controller, the inference thread behind it, and what passes between them. No Qt."""
