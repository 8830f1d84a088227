"""The protocol that nodes speak to each other."""
