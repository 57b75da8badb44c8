"""The demo: a small model made by code, a shipped sample of real statements, the real pipeline."""
