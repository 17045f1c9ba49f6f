"""The routes of /v1, a module per noun. Thin: who may ask, then the service."""
