"""Cluster DNS: what a cluster's names resolve to, as pure data, and the dnsmasq files that answer so.

``records`` says which records there are, ``dnsmasq`` writes them as files and says how a change of them takes
effect, ``objects`` are the workloads in kube-system that serve them. Starting dnsmasq and feeding it is
``cluster``'s.
"""
