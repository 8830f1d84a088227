"""What this node remembers: entries by slot, with versions, deadlines and bounds."""
