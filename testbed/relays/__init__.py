"""Programs that carry pods' packets between nodes in user space, one process on each node.

A dataplane runs them as ``state.Daemon``s. They know nothing of clusters: what they are to do is in a file.
"""
