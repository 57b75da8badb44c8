"""Selection methods: one module each, in a registry."""
