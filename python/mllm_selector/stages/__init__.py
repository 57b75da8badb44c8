"""The stages of a run. A stage never imports another: files in the run directory carry the data."""
