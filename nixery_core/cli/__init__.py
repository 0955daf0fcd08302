"""nixery_core."""
