"""How long tests wait for what must come true."""

PATIENCE_SECONDS = 60.0
"""No condition is given up sooner. What passes does not wait for it, and a busy machine may be ten times slower."""
