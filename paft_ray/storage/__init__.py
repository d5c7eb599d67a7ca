"""Storage: paths and URIs, artifacts with a manifest, finished parts, the lock.

paths.py        local paths and URIs, through one interface
fingerprint.py  names from content
artifacts.py    files that are complete once their manifest is there
node_copy.py    local copies, one per node
parts.py        finished parts of long work
full_disk.py    disks without space, named
lock.py         one live process at a time
"""
