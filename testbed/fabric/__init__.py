"""The fabric: switches, routers, links and hosts, as a Mininet network. It alone uses mininet.net."""

import logging

import mininet.log

# Importing Mininet's log module makes every later logger of the process one of its own kind, which prints
# on standard error by itself and without newlines. Only Mininet's own shall be one.
logging.setLoggerClass(logging.Logger)
mininet.log.lg.propagate = False
