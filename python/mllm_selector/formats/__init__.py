"""Pool formats: one module each."""
