"""Pi0.5 as pure functions over a parameter tree whose names are the checkpoint's."""
