"""One study: its layout on disk, settings, variants, run record, mirror and checks."""
