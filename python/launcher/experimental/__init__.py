"""What Ray has as experimental and programs use."""
