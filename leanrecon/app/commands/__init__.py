"""The commands, which put themselves into the app when they are imported."""
