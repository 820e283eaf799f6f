"""Models and storage joined: from a prompt to a committed object."""
