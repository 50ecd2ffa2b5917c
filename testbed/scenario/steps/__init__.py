"""The step kinds, one file each; see ``scenario.model`` for how to add one."""
