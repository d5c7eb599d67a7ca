"""What comes out of a training: saved and verified."""
