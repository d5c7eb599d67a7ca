"""Storage: paths and URIs, artifacts with a manifest, finished parts, the lock."""
