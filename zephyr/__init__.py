"""ZephyrCache: a self-healing distributed cache whose nodes gossip and keep etcd as the authority."""

__version__ = "0.1.0"
