"""Names to store paths without evaluation: what package sets were evaluated to, written down."""
