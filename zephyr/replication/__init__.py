"""One machine per read or write, and the table of those in flight."""
