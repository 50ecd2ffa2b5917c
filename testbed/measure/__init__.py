"""Measuring: what traffic really does. Flows in, samples out; one file per probe kind.

``prober`` is the process that opens sockets in the pods' own netns; ``service`` is the daemon's side.
"""
