"""What a loss of power leaves of a cache directory, tried at every point of a recorded session."""
