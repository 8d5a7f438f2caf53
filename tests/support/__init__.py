"""What several tests share: small models, servers on loopback, and data for the report."""
