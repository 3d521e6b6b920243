"""A SLURM cluster of five nodes on this machine, for the tests of `jobs/`.

Each node is a `slurmd` with a hostname and processes of its own (Linux namespaces), so that MPI
sees five hosts and a node can fail. Needs root, SLURM and munge; no service of the machine is
touched, nothing is written but a temporary directory.
"""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("node1", "node2", "node3", "node4", "node5")
GPU_NODE = "node3"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "unshare", "mount")
SECONDS = 20  # the cluster is up in about 2 s; the machine may be busy

# They ask for much, so that the scripts run as they stand: nothing is bound or taken from tasks.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,bf_interval=1
KillWait=5
GresTypes=gpu
NodeName=DEFAULT CPUs=64 CoresPerSocket=64 RealMemory=262144
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} Gres=gpu:fake:4 Weight=2
NodeName=node4 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[4]}
NodeName=node5 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[5]}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GPUS = "NodeName=node3 Name=gpu Type=fake File=/dev/null,/dev/zero,/dev/full,/dev/random\n"
OWN = ("--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
QUIET = {"capture_output": True, "text": True, "timeout": SECONDS}
NODE = """\
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount --bind {folder}/hosts /etc/hosts
exec slurmd -D -N {name} -f {folder}/slurm.conf
"""


def missing():
    """Return why no cluster can be started here, "" if it might be."""
    if os.geteuid():
        return "a SLURM cluster needs root"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    tried = subprocess.run(["unshare", *OWN, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], **QUIET)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def search_path():
    """Return PATH with the directories of daemons."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """The cluster while entered. Raises RuntimeError with what SLURM wrote, if it cannot start."""

    def __enter__(self):
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def _start(self, stack):
        # A short name, for sockets; not below one that others may not look into, for munge.
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        self.folder.chmod(0o755)
        self.environ = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": search_path(),
        }
        self._configure()
        # Last in, first out: jobs end before the daemons that know them.
        self._daemon(
            stack, "munged", "-F", f"--socket={self.folder}/munge.sock",
            f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        self.until(lambda: (self.folder / "munge.sock").exists(), "munged made no socket")
        self._daemon(stack, "slurmctld", "-D", "-f", f"{self.folder}/slurm.conf")
        self.nodes = {name: self._node(stack, name) for name in NODES}
        self.until(lambda: self.states().count("IDLE") == len(NODES), "the nodes did not come up")
        stack.callback(self.attempt, "scancel", "--user=root")

    def _configure(self):
        folder = self.folder
        host = socket.gethostname().split(".")[0]
        for name in ("state", *NODES):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIG.format(folder=folder, host=host, ports=free_ports(1 + len(NODES)))
        )
        (folder / "gres.conf").write_text(
            "NodeName=node[3-4] Name=gpu Type=fake File=/dev/null,/dev/zero,/dev/full,/dev/random\n"
        )
        hosts = Path("/etc/hosts").read_text()
        (folder / "hosts").write_text(f"{hosts}\n127.0.0.1 {' '.join(NODES)}\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    def _node(self, stack, name):
        script = NODE.format(name=name, folder=self.folder)
        return self._daemon(stack, "unshare", *OWN, "sh", "-ec", script)

    def _daemon(self, stack, *command):
        log = stack.enter_context((self.folder / f"{command[0]}.err").open("a"))
        process = subprocess.Popen(
            command, env=os.environ | self.environ, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        stack.callback(end, process)
        return process

    def run(self, *command, **how):
        """Run a command of SLURM's and return what it printed."""
        done = self.attempt(*command, **how)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def attempt(self, *command, env=os.environ, cwd=None):
        """Run a command of SLURM's and return how it ended; of a job around it it hears nothing."""
        env = {name: value for name, value in env.items() if not name.startswith("SLURM_")}
        return subprocess.run(
            command, env=env | self.environ, cwd=cwd, **QUIET
        )  # fmt: skip

    def states(self):
        """Return the state of every node."""
        shown = self.attempt("scontrol", "show", "node", "-o").stdout.split()
        return [word.removeprefix("State=") for word in shown if word.startswith("State=")]

    def until(self, true, otherwise, seconds=SECONDS):
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise RuntimeError(f"{otherwise}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self):
        """Return the ends of what the daemons wrote."""
        files = sorted([*self.folder.glob("*.err"), *self.folder.glob("*.log")])
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)

    def fail(self, name):
        """Have a node fail, with all that runs on it, and be known to be down.

        By itself SLURM would know that half a minute later, or when SlurmdTimeout says so.
        """
        self.nodes[name].kill()
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=failed")

    def show(self, job):
        """Return what SLURM knows of a job, by its own words; of the first part of several."""
        shown = self.run("scontrol", "show", "job", "-o", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in shown if "=" in word)


def end(process):
    """End a daemon, and all that runs on its node."""
    process.kill()
    process.wait()


def free_ports(count):
    """Return numbers of ports that nobody listens on, nor gets for a connection of their own."""
    found = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
