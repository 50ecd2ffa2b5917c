"""The directory of a cluster on the host: where it lies, whose it is, and whether its cluster lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.cluster import statedir
from testbed.cluster.statedir import Facts
from testbed.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "testbed"


def make(root: Path, name: str, *, ready: bool = True) -> statedir.Lock:
    directory, lock = statedir.create(name, root)
    facts = Facts(name=name, version="1", created=5.0, ready=ready, nodes=3)
    statedir.write_facts(directory, facts)
    lock.name_init(7, 9)
    return lock


def test_root_uses_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert statedir.root_directory({}, uid=0) == Path("/run/testbed")


def test_user_uses_the_runtime_directory(tmp_path: Path) -> None:
    uid = tmp_path.stat().st_uid or 4711
    os.chown(tmp_path, uid, -1)  # root may, anybody else changes nothing
    assert statedir.root_directory({"XDG_RUNTIME_DIR": str(tmp_path)}, uid=uid) == tmp_path / "testbed"


@pytest.mark.parametrize("runtime", ["", "relative", "/no/such/directory", "/proc/1"])
def test_a_runtime_directory_that_is_not_the_users_is_not_used(runtime: str) -> None:
    directory = statedir.root_directory({"XDG_RUNTIME_DIR": runtime}, uid=4711)
    assert directory.name == "testbed-4711"


@pytest.mark.parametrize("name", ["a", "demo-1", "0", "x" * 63])
def test_dns_labels_are_names(name: str) -> None:
    assert statedir.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/etc", "A", "-a", "a-", "a.b", "a\n", "a\0", "x" * 64, "ä"]
)
def test_nothing_else_is_a_name(name: str, root: Path) -> None:
    with pytest.raises(InputError, match="DNS label"):
        statedir.create(name, root)
    assert not root.exists()


def test_a_cluster_lives_as_long_as_its_lock_is_held(root: Path) -> None:
    lock = make(root, "demo")
    [entry] = statedir.list_clusters(root)
    assert (entry.name, entry.state, entry.pid, entry.started, entry.nodes, entry.pods) == (
        "demo",
        "running",
        7,
        5.0,
        3,
        None,
    )
    lock.close()
    assert [entry.state for entry in statedir.list_clusters(root)] == ["stale"]


def test_a_duplicate_of_the_descriptor_keeps_the_cluster_alive(root: Path) -> None:
    """As in init, which inherits it from the launcher."""
    lock = make(root, "demo")
    inherited = os.dup(lock.fd)
    lock.close()
    assert statedir.resolve("demo", root).state == "running"
    os.close(inherited)
    assert statedir.list_clusters(root)[0].state == "stale"


def test_looking_does_not_take_the_lock(root: Path) -> None:
    make(root, "demo").close()
    assert not statedir.is_locked(root / "demo")
    _, lock = statedir.create("demo", root)
    lock.close()


def test_a_cluster_that_is_not_ready_is_starting(root: Path) -> None:
    lock = make(root, "demo", ready=False)
    assert [entry.state for entry in statedir.list_clusters(root)] == ["starting"]
    with pytest.raises(InputError, match="still starting"):
        statedir.resolve("demo", root)
    lock.close()


@pytest.mark.parametrize(("ready", "message"), [(True, "is running already"), (False, "is starting")])
def test_a_name_in_use_is_refused(root: Path, ready: bool, message: str) -> None:
    lock = make(root, "demo", ready=ready)
    with pytest.raises(statedir.NameTaken, match=message):
        statedir.create("demo", root)
    assert statedir.read_facts(root / "demo") is not None
    lock.close()


def test_a_stale_name_is_free_and_what_it_left_is_gone(root: Path) -> None:
    make(root, "demo").close()
    (root / "demo" / "left").mkdir()
    (root / "demo" / "left" / "file").touch()
    directory, lock = statedir.create("demo", root)
    assert [path.name for path in directory.iterdir()] == ["lock"]
    lock.close()


def test_cleaning_removes_stale_clusters_only(root: Path) -> None:
    alive, dead = make(root, "alive"), make(root, "dead")
    dead.close()
    assert [entry.name for entry in statedir.clean_stale(root)] == ["dead"]
    assert [path.name for path in root.iterdir()] == ["alive"]
    alive.close()


def test_cleaning_never_follows_a_link_out(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    make(root, "demo").close()
    (root / "demo" / "link").symlink_to(precious)
    statedir.clean_stale(root)
    assert (precious / "file").exists()
    assert not (root / "demo").exists()


def test_the_only_running_cluster_needs_no_name(root: Path) -> None:
    with pytest.raises(InputError, match="testbed up"):
        statedir.resolve(None, root)
    locks = [make(root, "one")]
    make(root, "stale").close()
    assert statedir.resolve(None, root).name == "one"
    locks.append(make(root, "two"))
    with pytest.raises(InputError, match=r"\(one, two\).*--cluster"):
        statedir.resolve(None, root)
    with pytest.raises(InputError, match=r"no cluster named 'three' is running; running: one, two"):
        statedir.resolve("three", root)
    for lock in locks:
        lock.close()


def test_a_directory_open_to_others_is_refused(root: Path) -> None:
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    with pytest.raises(InputError, match="open to others"):
        statedir.list_clusters(root)
    with pytest.raises(InputError, match="open to others"):
        statedir.create("demo", root)


def test_a_link_in_place_of_the_directory_is_refused(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    root.symlink_to(elsewhere)
    with pytest.raises(InputError, match="not a directory"):
        statedir.create("demo", root)


def test_unreadable_facts_do_not_hide_a_cluster(root: Path) -> None:
    lock = make(root, "demo")
    (root / "demo" / "cluster.json").write_text("{")
    assert [(entry.name, entry.state) for entry in statedir.list_clusters(root)] == [("demo", "starting")]
    lock.close()


@pytest.mark.parametrize("text", ["", '{"name": "de', "[]", '{"name": 5}'])
def test_a_cluster_whose_facts_are_spoilt_can_still_be_found_and_ended(root: Path, text: str) -> None:
    lock = make(root, "demo")
    (root / "demo" / statedir.FACTS).write_text(text)
    [entry] = statedir.list_clusters(root)
    assert (entry.state, entry.pid, entry.started_ticks) == ("starting", 7, 9)
    lock.close()


def test_a_new_cluster_does_not_show_the_init_of_the_one_before(root: Path) -> None:
    make(root, "demo").close()
    _, lock = statedir.create("demo", root)
    assert [entry.pid for entry in statedir.list_clusters(root)] == [0]
    lock.close()
