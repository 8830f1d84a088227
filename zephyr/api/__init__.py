"""What clients speak: HTTP, its semantics and the debug views."""
