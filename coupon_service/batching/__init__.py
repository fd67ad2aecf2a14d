"""What arrives at the same time is carried out together."""
