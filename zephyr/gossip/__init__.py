"""SWIM gossip: who is there and who answers, decided by a pure machine."""
