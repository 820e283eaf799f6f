"""The viewer coming in: mouse, keys, what is on screen, and layers that change or go. No Qt."""
