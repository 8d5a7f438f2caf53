"""Reading over a network: retries, byte ranges, downloads, S3."""
