"""The kinds of objects a cluster takes, in one table: names, scope, and whether they do anything here.

A kind with an effect has a controller or a compiler behind it; every other one is stored, so that
published applications apply unchanged. Names as ``kubectl api-resources`` of v1.36 prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as plain JSON data. Objects that are in a store are never changed in place."""


@dataclass(frozen=True)
class Kind:
    """One kind. group: "" for core; effect: more than stored; generation: counts changes of what is wanted;
    older: versions that are also taken, stored as they come."""

    kind: str
    group: str
    version: str
    plural: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    effect: bool = False
    generation: bool = False
    older: tuple[str, ...] = ()

    @cached_property
    def singular(self) -> str:
        """The kind in lower case, as kubectl takes and prints it."""
        return self.kind.lower()

    @cached_property
    def api_version(self) -> str:
        """``v1``, ``apps/v1``: what stands in an object's apiVersion."""
        return _joined(self.group, self.version)

    @cached_property
    def api_versions(self) -> tuple[str, ...]:
        """Every apiVersion that is taken, the preferred one first."""
        return (self.api_version, *(_joined(self.group, version) for version in self.older))

    @cached_property
    def resource(self) -> str:
        """``services``, ``deployments.apps``: the resource in the server's messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def printed(self) -> str:
        """``service``, ``deployment.apps``: what stands before the slash in kubectl's lines."""
        return f"{self.singular}.{self.group}" if self.group else self.singular

    @cached_property
    def qualified(self) -> str:
        """``Service``, ``Deployment.apps``: the kind in the server's "is invalid" messages."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


def _joined(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


def _rows(text: str) -> Iterator[Kind]:
    """A row of the table: flags as in its heading, kind, group/version, plural, short names if any."""
    for line in filter(None, map(str.strip, text.splitlines())):
        letters, kind, api, plural, *short = line.split()
        group, _, version = api.rpartition("/")
        yield Kind(
            kind,
            group,
            version,
            plural,
            tuple(",".join(short).split(",")) if short else (),
            namespaced="C" not in letters,
            effect="E" in letters,
            generation="G" in letters,
        )


# Flags: E has an effect, G has a generation, C is cluster-scoped, - none of them.
KINDS: tuple[Kind, ...] = (
    *_rows("""
    EC Namespace                      v1                              namespaces ns
    EC Node                           v1                              nodes no
    EG Pod                            v1                              pods po
    EG Deployment                     apps/v1                         deployments deploy
    EG ReplicaSet                     apps/v1                         replicasets rs
    EG StatefulSet                    apps/v1                         statefulsets sts
    EG DaemonSet                      apps/v1                         daemonsets ds
    EG ReplicationController          v1                              replicationcontrollers rc
    EG Job                            batch/v1                        jobs
    G  CronJob                        batch/v1                        cronjobs cj
    E  Service                        v1                              services svc
    EG EndpointSlice                  discovery.k8s.io/v1             endpointslices
    E  Endpoints                      v1                              endpoints ep
    EG NetworkPolicy                  networking.k8s.io/v1            networkpolicies netpol
    EGC ClusterNetworkPolicy          policy.networking.k8s.io/v1alpha2 clusternetworkpolicies cnp
    EGC AdminNetworkPolicy            policy.networking.k8s.io/v1alpha1 adminnetworkpolicies anp
    EGC BaselineAdminNetworkPolicy    policy.networking.k8s.io/v1alpha1 baselineadminnetworkpolicies banp
    G  Ingress                        networking.k8s.io/v1            ingresses ing
    GC IngressClass                   networking.k8s.io/v1            ingressclasses
    EC ServiceCIDR                    networking.k8s.io/v1            servicecidrs
    C  IPAddress                      networking.k8s.io/v1            ipaddresses ip
    -  ConfigMap                      v1                              configmaps cm
    -  Secret                         v1                              secrets
    -  ServiceAccount                 v1                              serviceaccounts sa
    -  Event                          v1                              events ev
    -  PersistentVolumeClaim          v1                              persistentvolumeclaims pvc
    C  PersistentVolume               v1                              persistentvolumes pv
    G  PodTemplate                    v1                              podtemplates
    -  ResourceQuota                  v1                              resourcequotas quota
    -  LimitRange                     v1                              limitranges limits
    E  ControllerRevision             apps/v1                         controllerrevisions
    G  PodDisruptionBudget            policy/v1                       poddisruptionbudgets pdb
    GC PriorityClass                  scheduling.k8s.io/v1            priorityclasses pc
    C  RuntimeClass                   node.k8s.io/v1                  runtimeclasses
    -  Lease                          coordination.k8s.io/v1          leases
    C  StorageClass                   storage.k8s.io/v1               storageclasses sc
    C  VolumeAttachment               storage.k8s.io/v1               volumeattachments
    C  CSIDriver                      storage.k8s.io/v1               csidrivers
    C  CSINode                        storage.k8s.io/v1               csinodes
    -  CSIStorageCapacity             storage.k8s.io/v1               csistoragecapacities
    -  Role                           rbac.authorization.k8s.io/v1    roles
    -  RoleBinding                    rbac.authorization.k8s.io/v1    rolebindings
    C  ClusterRole                    rbac.authorization.k8s.io/v1    clusterroles
    C  ClusterRoleBinding             rbac.authorization.k8s.io/v1    clusterrolebindings
    GC CustomResourceDefinition       apiextensions.k8s.io/v1         customresourcedefinitions crd,crds
    C  APIService                     apiregistration.k8s.io/v1       apiservices
    GC MutatingWebhookConfiguration   admissionregistration.k8s.io/v1 mutatingwebhookconfigurations
    GC ValidatingWebhookConfiguration admissionregistration.k8s.io/v1 validatingwebhookconfigurations
    GC ValidatingAdmissionPolicy      admissionregistration.k8s.io/v1 validatingadmissionpolicies
    GC ValidatingAdmissionPolicyBinding admissionregistration.k8s.io/v1 validatingadmissionpolicybindings
    C  CertificateSigningRequest      certificates.k8s.io/v1          certificatesigningrequests csr
    """),
    Kind(
        "HorizontalPodAutoscaler", "autoscaling", "v2", "horizontalpodautoscalers", ("hpa",), older=("v1",)
    ),
)  # fmt: skip

BY_NAME: dict[str, Kind] = {kind.kind: kind for kind in KINDS}
_BY_TYPE: dict[tuple[str, str], Kind] = {
    (version, kind.kind): kind for kind in KINDS for version in kind.api_versions
}
_BY_PLURAL: dict[tuple[str, str], Kind] = {
    (version, kind.plural): kind for kind in KINDS for version in kind.api_versions
}
_BY_WORD: dict[str, Kind] = {
    word: kind
    for kind in reversed(KINDS)
    for word in (
        kind.plural,
        kind.singular,
        *kind.short_names,
        f"{kind.plural}.{kind.group}",
        f"{kind.singular}.{kind.group}",
    )
}


def find(api_version: str, kind: str) -> Kind | None:
    """The kind an object with these two fields is of; None if the server has no such kind."""
    return _BY_TYPE.get((api_version, kind))


def kind_of(obj: Object) -> Kind:
    """The kind of an object that is known to be of one (it was checked or comes from a store)."""
    return BY_NAME[obj["kind"]]


def by_plural(group: str, version: str, plural: str) -> Kind | None:
    """The kind served at ``/apis/GROUP/VERSION/…/PLURAL``; group "" is core."""
    return _BY_PLURAL.get((_joined(group, version), plural))


def by_word(word: str) -> Kind | None:
    """The kind a person means: ``po``, ``pod``, ``pods``, ``deployments.apps``, any case."""
    return _BY_WORD.get(word.lower())
