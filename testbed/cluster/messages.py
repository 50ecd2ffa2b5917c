"""What the sandbox's processes say to each other, as typed messages over ``kernel.channel``.

Every request carries an ``id``; its answer, and only it, carries the same. Descriptors travel beside a
message, in the order its docstring names. A failed request is answered by ``Failed``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from testbed.state import ContainerState, Daemon, Listener, NetnsState, PluginList, PodState, Sandbox, Upkeep


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base: the tag is the class name."""


class Failed(Message, frozen=True):
    """The request ``id`` failed; exit_code as in ``testbed.errors``."""

    id: int
    message: str
    exit_code: int = 4


class Done(Message, frozen=True):
    """The request ``id`` is done and has nothing more to say."""

    id: int


# --- changes: what the daemon asks a node's agent to do ---------------------------------------------


class AddPods(Message, frozen=True):
    """Make these pods: netns, links, addresses, routes, sysctls, listeners."""

    pods: tuple[PodState, ...]


class DeletePods(Message, frozen=True):
    """Remove these pods by uid, with all that is in them."""

    uids: tuple[str, ...]


class UpdatePod(Message, frozen=True):
    """Files, environment, identity or listeners of a pod changed; its netns did not."""

    pod: PodState


class ChangeNetns(Message, frozen=True):
    """Replace part of one netns: first what ``remove`` holds is deleted, then ``add`` is added or set.

    where: ``state.NODE`` or a pod's uid. For iptables chains ``add`` holds the whole new chain.
    """

    where: str
    add: NetnsState
    remove: NetnsState


class ServeNode(Message, frozen=True):
    """Answer on the node itself on these ports, and on no others."""

    listeners: tuple[Listener, ...]


class RunDaemons(Message, frozen=True):
    """Run these daemons on the node, by name, and no others."""

    daemons: dict[str, Daemon]


class ChangeSandboxes(Message, frozen=True):
    """Have plugins wire these sandboxes, and take those (uids) down; what comes of each is said unasked, by
    SandboxReady, SandboxFailed and SandboxGone. One that is there already is left as it is."""

    add: tuple[Sandbox, ...]
    remove: tuple[str, ...]


class LoadPlugins(Message, frozen=True):
    """Have the runtime use these plugins, and ask them again and again whether they can be used."""

    plugins: PluginList


class WriteFiles(Message, frozen=True):
    """Have programs on the node see these files, and no others of ours. By path below /run."""

    files: dict[str, str]


Change = (
    AddPods
    | DeletePods
    | UpdatePod
    | ChangeNetns
    | ServeNode
    | RunDaemons
    | LoadPlugins
    | ChangeSandboxes
    | WriteFiles
)


class Apply(Message, frozen=True):
    """daemon → agent: apply these changes in order; answered by Applied."""

    id: int
    changes: tuple[Change, ...]


class Applied(Message, frozen=True):
    """agent → daemon: what became of an Apply. failed: pod uid or ``node`` → message; the rest holds.

    warnings: pod uid → what of a pod that was made does not work, a port that is taken say.
    seconds: step name → seconds spent, for the programming latency.
    """

    id: int
    failed: dict[str, str] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    seconds: dict[str, float] = {}


# --- open connections -------------------------------------------------------------------------------


class Connection(msgspec.Struct, frozen=True, array_like=True):
    """A connection that a node's kernel tracks. port: that ``destination`` answers on, 0 where there is none.

    source: who asked; destination: who answers, after address translation. marked: cut off before. key:
    what the kernel knows it by.
    """

    source: str
    destination: str
    protocol: str
    port: int
    marked: bool
    key: bytes


class ListConnections(Message, frozen=True):
    """daemon → agent: which connections does the node's kernel track? Answered by Connections."""

    id: int


class Connections(Message, frozen=True):
    """agent → daemon: all of them."""

    id: int
    found: tuple[Connection, ...]


class MarkConnections(Message, frozen=True):
    """daemon → agent: cut these connections off, or (False) no longer; answered by Done. By their keys."""

    id: int
    keys: tuple[tuple[bytes, bool], ...]


# --- the kubelet's part: what an agent says unasked ---------------------------------------------------


class Beat(Message, frozen=True):
    """daemon → agent: from now on say that you live every ``seconds``; no answer."""

    seconds: float


class Heartbeat(Message, frozen=True):
    """agent → daemon, unasked: this node's agent lives."""


class PodChanged(Message, frozen=True):
    """agent → daemon, unasked: the containers of a pod are no longer as last said (at first: all ready)."""

    uid: str
    containers: tuple[ContainerState, ...]


class PodEvent(Message, frozen=True):
    """agent → daemon, unasked: something to tell people about a pod, as an event of the kubelet."""

    uid: str
    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


class WantNames(Message, frozen=True):
    """agent → daemon, unasked: a DNS server of this node is to be fed, from now on and with everything."""


class FeedNames(Message, frozen=True):
    """daemon → agent: what the node's DNS servers are to read; answered, unasked, by NamesFed.

    serial: grows; whole: nothing else is left of what they read. hosts, servers, externals: as of
    ``dns.dnsmasq.NameChange``.
    """

    serial: int
    hosts: dict[str, str]
    servers: dict[str, str]
    externals: tuple[str, ...] | None = None
    whole: bool = False


class NamesFed(Message, frozen=True):
    """agent → daemon, unasked: the node's DNS servers answer by all that was fed up to ``serial``.

    restarted: up to which serial configurations, too, are those that run.
    """

    serial: int
    restarted: int


class SandboxReady(Message, frozen=True):
    """agent → daemon, unasked: plugins wired a sandbox and gave it these addresses."""

    uid: str
    addresses: tuple[str, ...]


class SandboxFailed(Message, frozen=True):
    """agent → daemon, unasked: plugins could not wire a sandbox, or (leaving) not take it down; the agent
    tries again. message, reason: as the kubelet tells it in an event."""

    uid: str
    message: str
    leaving: bool = False
    reason: str = "FailedCreatePodSandBox"


class SandboxGone(Message, frozen=True):
    """agent → daemon, unasked: a sandbox that was to be taken down is gone."""

    uid: str


class NetworkStatus(Message, frozen=True):
    """agent → daemon, unasked: the plugins' answer to STATUS changed; "": they can be used."""

    message: str


class CheckSandbox(Message, frozen=True):
    """daemon → agent: have plugins check a sandbox; answered by Done, or Failed with what is wrong."""

    id: int
    uid: str


class PodEnded(Message, frozen=True):
    """agent → daemon, unasked: a pod with a ``grace`` runs nothing any more and may be removed."""

    uid: str


# --- rules -------------------------------------------------------------------------------------------


class KeepRules(Message, frozen=True):
    """daemon → agent, before anything is applied: how this node's iptables are made and kept; no answer.

    backend: which of the two; period: seconds within which a flush by somebody else is noticed, 0: never;
    upkeep: what the node looks after by itself.
    """

    backend: Literal["nft", "legacy"] = "nft"
    period: float = 0.0
    upkeep: tuple[Upkeep, ...] = ()


class RulesLost(Message, frozen=True):
    """agent → daemon, unasked: somebody flushed rules of this node; they have to be applied again."""

    message: str


# --- load balancers -----------------------------------------------------------------------------------


class CheckHealth(Message, frozen=True):
    """daemon → checker: from now on ask these (address, port), and no others, over HTTP for their health."""

    targets: tuple[tuple[str, int], ...]


class Health(Message, frozen=True):
    """checker → daemon, unasked: what it found. healthy, unhealthy: targets; the others are not known yet."""

    healthy: tuple[tuple[str, int], ...] = ()
    unhealthy: tuple[tuple[str, int], ...] = ()


# --- processes --------------------------------------------------------------------------------------


class Spawn(Message, frozen=True):
    """daemon → zygote: fork a worker that runs ``module:function(channel, name)``.

    fds: the worker's end of a channel, then the netns it lives in (optional: without, the sandbox's).
    """

    id: int
    name: str
    entry: str


class Spawned(Message, frozen=True):
    """zygote → daemon: the worker of Spawn ``id`` runs as process ``pid`` (in the sandbox's numbering)."""

    id: int
    pid: int


class Ended(Message, frozen=True):
    """zygote → daemon, unasked: a worker ended. status: as os.waitstatus_to_exitcode gives it."""

    name: str
    pid: int
    status: int


class Listening(Message, frozen=True):
    """listener → daemon, unasked, once. fds: a socket that listens on ``port`` in the netns of a host."""

    port: int


class GetNetns(Message, frozen=True):
    """daemon → agent (names: pod uids, or ``node``) or fabric (names: host names); answered by Netns."""

    id: int
    names: tuple[str, ...]


class Netns(Message, frozen=True):
    """fds: one netns per name. At most 200 names a message: SCM_RIGHTS carries 253 descriptors."""

    id: int
    names: tuple[str, ...]


class Exec(Message, frozen=True):
    """daemon → agent or fabric: run argv. fds: stdin, stdout, stderr.

    where: pod uid or ``node`` (agent), host name (fabric). env: the whole environment.
    tty: make stdin the controlling terminal of a new session. Answered by Started, then Exited.
    """

    id: int
    where: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = "/"
    tty: bool = False


class Started(Message, frozen=True):
    """The program of Exec ``id`` runs as ``pid``; a program not found is Failed with exit code 127 or 126."""

    id: int
    pid: int


class Signal(Message, frozen=True):
    """Send signal ``number`` to the process group of Exec ``id``; no answer."""

    id: int
    number: int


class Exited(Message, frozen=True):
    """The program of Exec ``id`` ended; code as a shell gives it (128 + signal)."""

    id: int
    code: int


class FabricReady(Message, frozen=True):
    """fabric → daemon, unasked, once: every link carried a frame.

    hosts: name → role; links: (host a, port a, host b, port b).
    """

    hosts: dict[str, str]
    links: tuple[tuple[str, str, str, str], ...]
    seconds: dict[str, float]


class OpenShell(Message, frozen=True):
    """daemon → fabric: run Mininet's CLI. fds: a terminal. Answered by Exited when the person leaves."""

    id: int


class ReadNetns(Message, frozen=True):
    """daemon → agent: what does the kernel hold of a netns? where: ``state.NODE`` or a pod's uid."""

    id: int
    where: str


class NetnsRead(Message, frozen=True):
    """agent → daemon: the answer to ReadNetns, as ``kernel.readback`` reads it."""

    id: int
    state: NetnsState


class ChangeEnd(Message, frozen=True):
    """daemon → fabric: the end ``port`` of a link, on ``host``, is to be so; answered by Done.

    up: False takes the link down; mtu: 0 for its own; shaping: Mininet's keyword arguments that replace the
    link's own, none for its own.
    """

    id: int
    host: str
    port: str
    up: bool = True
    mtu: int = 0
    shaping: dict[str, Any] = {}


class Readdress(Message, frozen=True):
    """daemon → fabric: a host's first interface is to have these addresses instead; answered by Done.

    addresses: with prefix length, one for each of those it has, of the same family.
    """

    id: int
    host: str
    addresses: tuple[str, ...]


class SetRoutes(Message, frozen=True):
    """daemon → fabric: the routes to pod ranges in fabric routers. host → routes (dst, vias)."""

    id: int
    routes: dict[str, dict[str, tuple[str, ...]]]


AnyMessage = (
    Failed
    | Done
    | AddPods
    | DeletePods
    | UpdatePod
    | ChangeNetns
    | ServeNode
    | Apply
    | Applied
    | ListConnections
    | Connections
    | MarkConnections
    | Beat
    | Heartbeat
    | PodChanged
    | PodEvent
    | PodEnded
    | ChangeSandboxes
    | WriteFiles
    | SandboxReady
    | SandboxFailed
    | SandboxGone
    | NetworkStatus
    | CheckSandbox
    | Listening
    | KeepRules
    | RulesLost
    | CheckHealth
    | Health
    | WantNames
    | FeedNames
    | NamesFed
    | Spawn
    | Spawned
    | Ended
    | GetNetns
    | Netns
    | Exec
    | Started
    | Signal
    | Exited
    | FabricReady
    | OpenShell
    | SetRoutes
    | Readdress
    | ReadNetns
    | NetnsRead
    | ChangeEnd
)
