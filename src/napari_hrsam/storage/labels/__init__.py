"""Label images: committed objects, their history, and what keeps them whole."""
