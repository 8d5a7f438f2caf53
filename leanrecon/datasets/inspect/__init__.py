"""What a file or folder is, and the settings that would read it."""
