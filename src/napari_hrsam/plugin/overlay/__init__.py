"""What a session shows in the viewer: prompts, the current object, committed objects. No Qt."""
