"""The etcd witness: registrations under leases."""
