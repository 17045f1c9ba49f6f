"""Where records are kept: one contract (base.py), SQLite for one machine and for tests, etcd for clusters.

A store knows keys and bytes, revisions, leases and watches. It does not know what the bytes mean; the names of
the keys are in keys.py so that no two rooms spell one differently.
"""
