"""Reports: a run folder in, a page out. Nothing else is read: no cluster, no network, no clock."""
