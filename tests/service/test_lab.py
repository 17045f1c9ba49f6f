"""The lab's own laws: hosts are real, nothing gets out, a plug can be pulled, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from lab import Lab, LabError, clean, hosts, network, root, state

TESTS = Path(__file__).parents[1]
needs_lab = [pytest.mark.lab, pytest.mark.timeout(600)]  # the first one may have to build the hosts' root


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    with Lab(["alpha", "beta"]) as lab:
        yield lab


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def command_line(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@contextmanager
def killed_test(name: str, more: str, ready: Callable[[], bool]) -> Iterator[None]:
    """Of a process that makes the lab `name`, with a host `alone`, is there when `ready`, and is killed at the end.

    From then on any test beside this one may end the lab before this one does.
    """
    script = f"import time, lab\nwith lab.Lab(['alone'], name='{name}'{more}):\n time.sleep(300)"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as test:
        try:
            until(ready, f"lab {name} is there", 300)
            yield
        finally:
            test.kill()


def is_on(name: str) -> bool:
    return name in state.labs() and "alone" in Lab.open(name).hosts and Lab.open(name).hosts["alone"].on


def left_behind(lab: str) -> list[str]:
    """What there is of a lab: it must be empty after its end."""
    found = [state.folder(lab), root.cache_folder() / "disks" / lab, Path("/run/netns", network.namespace(lab))]
    cgroups = [path for top in hosts.CGROUPS for path in Path(top).glob(f"{network.namespace(lab)}-*")]
    return [str(path) for path in (*found, *cgroups) if path.exists()]


class TestHosts:
    pytestmark = needs_lab

    def test_a_host_has_its_own_systemd_name_and_user_units(self, pair: Lab) -> None:
        assert pair.run("alpha", "cat /proc/1/comm; hostname").stdout.split() == ["systemd", "alpha"]
        assert pair.run("alpha", "systemd-run --quiet --wait --pipe -p User=nobody id -un").stdout == "nobody\n"
        ids = {pair.run(host, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub").stdout for host in pair.hosts}
        assert len(ids) == 2

    def test_units_of_one_host_are_not_seen_by_another(self, pair: Lab) -> None:
        pair.run("alpha", "systemd-run --quiet --unit=mine sleep 300")
        assert pair.run("beta", "systemctl is-active mine", check=False).stdout == "inactive\n"
        pair.run("beta", "systemd-run --quiet --unit=mine sleep 300; systemctl stop mine")
        assert pair.run("alpha", "systemctl is-active mine").stdout == "active\n"

    def test_hosts_know_each_other_by_name(self, pair: Lab) -> None:
        assert pair.run("alpha", "getent hosts beta").stdout.split() == [pair.address("beta"), "beta"]

    def test_nothing_gets_out(self, pair: Lab) -> None:
        for way in ("192.0.2.1", "2001:db8::1"):
            assert "unreachable" in pair.run("alpha", f"ip route get {way}", check=False).stderr
        assert pair.run("alpha", "ip route show default").stdout == ""
        assert pair.here(["ip", "route", "show", "default"]).stdout == ""
        links = {
            line.split()[1].partition("@")[0].rstrip(":")
            for line in pair.here(["ip", "-o", "link"]).stdout.splitlines()
        }
        assert links == {"lo", network.BRIDGE, "vb-h1", "vb-h2"}

    def test_a_failed_command_says_what_it_wrote(self, pair: Lab) -> None:
        with pytest.raises(LabError, match=r"'ls /none' on alpha ended with 2: .*/none"):
            pair.run("alpha", "ls /none")
        with pytest.raises(LabError, match="has no host gamma: it has alpha, beta"):
            pair.run("gamma", "true")

    def test_a_later_host_is_known_to_the_earlier(self) -> None:
        with Lab(["one"]) as lab:
            lab.add(["two"])
            assert lab.run("one", "getent hosts two").stdout.split()[0] == lab.address("two")


class TestFaults:
    pytestmark = needs_lab

    def test_power_off_keeps_the_disk_and_loses_the_memory(self, pair: Lab) -> None:
        before = pair.run(
            "alpha", "date > /var/lib/kept; date > /run/lost; systemctl enable -q nftables; cat /etc/machine-id"
        )
        pair.power_off("alpha")
        assert not pair.hosts["alpha"].on
        pair.power_on("alpha")
        after = pair.run("alpha", "ls /run/lost /var/lib/kept; cat /etc/machine-id", check=False).stdout.split()
        assert after == ["/var/lib/kept", before.stdout.strip()]

    def test_a_lost_disk_is_a_new_machine(self, pair: Lab) -> None:
        before = pair.run("alpha", "touch /var/lib/kept; cat /etc/machine-id").stdout
        pair.power_off("alpha")
        pair.power_on("alpha", keep_disk=False)
        after = pair.run("alpha", "ls /var/lib/kept; cat /etc/machine-id", check=False).stdout
        assert len(after.split()) == 1 and after != before

    def test_a_host_that_is_cut_off_runs_on(self, pair: Lab) -> None:
        reach = ["ping", "-c1", "-W1", pair.address("beta")]
        pair.run(
            "beta", "systemd-run --quiet --unit=ticks sh -c 'while sleep 0.1; do date +%s%N >> /var/tmp/ticks; done'"
        )
        pair.cut("beta")
        cut_at = time.time_ns()
        assert pair.run("alpha", reach, check=False).returncode == 1
        joined_at = time.time_ns()
        pair.join("beta")
        until(lambda: pair.run("alpha", reach, check=False).returncode == 0, "beta answers again")
        ticks = [int(word) for word in pair.run("beta", "systemctl stop ticks; cat /var/tmp/ticks").stdout.split()]
        assert any(cut_at < tick < joined_at for tick in ticks)


class TestLife:
    pytestmark = needs_lab

    def test_two_at_once_do_not_meet(self, pair: Lab) -> None:
        with Lab(["alpha"]) as other:
            assert other.address("alpha") == pair.address("alpha")
            other.run("alpha", "touch /here")
            assert pair.run("alpha", "ls /here", check=False).returncode == 2
        assert left_behind(other.name) == []
        assert pair.run("alpha", "true").returncode == 0

    def test_labs_come_and_go_beside_each_other(self) -> None:
        def come_and_go(_: int) -> list[str]:
            with Lab() as lab:
                assert lab.name in state.labs()
            return left_behind(lab.name)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(come_and_go, range(12))) == [[]] * 12

    def test_what_a_killed_test_left_is_ended(self) -> None:
        name = f"killed{os.getpid()}"
        with killed_test(name, "", lambda: is_on(name)):
            server = subprocess.Popen([*Lab.open(name).inside(), "sleep", "300"])
            host = Lab.open(name).hosts["alone"]
            assert host.on and len(left_behind(name)) >= 3
        clean.clean()
        assert not host.on and left_behind(name) == []
        assert server.wait(timeout=60) == -signal.SIGKILL

    @pytest.mark.lab(kernel=True)
    def test_what_a_killed_test_left_of_a_machine_is_ended(self) -> None:
        name = f"machine{os.getpid()}"
        with killed_test(name, ", kernels=['alone']", lambda: is_on(name)):
            host = Lab.open(name).hosts["alone"]
            assert host.on and host.own_kernel and len(left_behind(name)) == 3
        clean.clean()
        assert not host.on and left_behind(name) == []

    def test_a_kernel_for_nobody_is_refused(self, pair: Lab) -> None:
        with pytest.raises(LabError, match="gamma shall have a kernel and is not among"):
            pair.add(["alpha"], kernels=["gamma"])

    def test_a_name_in_use_is_refused_and_its_lab_unharmed(self, pair: Lab) -> None:
        with pytest.raises(LabError, match=f"python -m lab destroy --name {pair.name}"), Lab(name=pair.name):
            pass
        assert pair.run("alpha", "true").returncode == 0


class TestCommandLine:
    pytestmark = needs_lab

    def test_ansible_reaches_the_hosts_from_inside_and_outside(self, tmp_path: Path) -> None:
        file, name = tmp_path / "hosts.json", f"cli{os.getpid()}"
        try:
            made = command_line(
                "create", "--name", name, "--hosts", "a,b", "--group", "workers=b", "--inventory", str(file)
            )
            assert made.returncode == 0, made.stderr
            assert list(json.loads(file.read_text())["all"]["children"]["workers"]["hosts"]) == ["b"]
            ansible = [str(Path(sys.executable).parent / "ansible"), "-i", str(file), "workers", "-m", "ping", "-o"]
            outside = subprocess.run(ansible, capture_output=True, text=True, cwd=tmp_path)
            inside = command_line("run", "--name", name, "--", *ansible)
            for done in (outside, inside):
                assert "b | SUCCESS" in done.stdout, done.stdout + done.stderr
        finally:
            assert command_line("destroy", "--name", name).returncode == 0
        assert left_behind(name) == []

    def test_run_holds_the_network_while_hosts_come_and_go(self, tmp_path: Path) -> None:
        script = """
            set -e
            python -m lab create --hosts a; python -m lab destroy; python -m lab create --hosts a
            python -m lab ssh a hostname; test -s $LAVALITE_LAB_INVENTORY; ip -br address show lab0
            echo $LAVALITE_LAB_NAME
        """
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = command_line("run", "--", "sh", "-c", script, PATH=path)
        said = done.stdout.split()
        assert said[:1] == ["a"] and f"{network.HERE}/24" in said, done.stderr
        assert left_behind(said[-1]) == []

    def test_a_terminated_run_ends_its_lab(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        command = [sys.executable, "-m", "lab", "run", "--", "sh", "-c", "echo $LAVALITE_LAB_NAME; exec sleep 300"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            name = run.stdout.readline().strip()
            run.terminate()
        assert run.returncode == 128 + signal.SIGTERM and left_behind(name) == []

    def test_bad_words_are_one_sentence(self) -> None:
        for words in (["create", "--name", "none", "--hosts", "Not_A_Name"], ["cut", "--name", "none", "a"]):
            done = command_line(*words)
            assert done.returncode == 1 and done.stderr.startswith("lab: ") and "Traceback" not in done.stderr


def test_two_that_need_the_root_wait_for_one_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(folder: Path, suite: str, log: Path) -> None:
        built.append(folder.name)
        time.sleep(0.1)
        folder.mkdir()

    monkeypatch.setenv("LAVALITE_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(root, "_build", build)
    monkeypatch.setattr(root, "_settle", lambda folder: None)
    (tmp_path / "building-half").mkdir()
    threads = [threading.Thread(target=root.shared_root) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and not list(tmp_path.glob("building-*"))


MOUNTER = """#!/bin/sh
# What debootstrap does that can stay behind: the folder is the last word but one.
while [ $# -gt 2 ]; do shift; done
mkdir -p "$1/proc" && mount -t proc proc "$1/proc" && touch "$1/mounted" && exec sleep 300
"""


@pytest.mark.lab
def test_a_killed_build_of_the_root_leaves_no_mount_and_no_program(tmp_path: Path) -> None:
    program = tmp_path / "bin/debootstrap"
    program.parent.mkdir()
    program.write_text(MOUNTER)
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "LAVALITE_LAB_CACHE": str(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }
    build = [sys.executable, "-m", "lab", "root"]
    for _ in range(2):  # the second finds what the first left
        with subprocess.Popen(build, env=environment) as run:
            try:
                until(lambda: bool(list(tmp_path.glob("building-*/mounted"))), "the build is in its midst")
                (folder,) = tmp_path.glob("building-*")
                assert str(folder) not in Path("/proc/self/mountinfo").read_text() and not list(folder.glob("proc/*"))
            finally:
                run.kill()
        until(lambda: not running(str(tmp_path / "building")), "nothing of it runs on")
        (folder / "mounted").unlink()


def running(words: str) -> list[str]:
    """Processes that have `words` in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [file.parent.name] if words in file.read_text(errors="replace") else []
    return found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "sources.list",
            "# deb http://no.example/x stable main\ndeb [signed-by=/k] http://yes.example/debian stable main\n",
        ),
        (
            "sources.list.d/a.list",
            "deb-src http://no.example/x stable main\ndeb http://yes.example/debian stable main\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\n# a remark: here\nURIs: http://no.example/s\nSuites: stable-security\n\n"
            "Types: deb deb-src\nURIs: http://yes.example/debian\nSuites: stable stable-updates\nComponents: main\n",
        ),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text)
    assert root.mirror("stable", tmp_path) == "http://yes.example/debian"
    with pytest.raises(LabError, match="No mirror for other"):
        root.mirror("other", tmp_path)
