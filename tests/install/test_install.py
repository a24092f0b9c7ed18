"""The setup scripts on machines that lack something, simulated by a PATH of stub programs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCH = ROOT / "install" / "horovod-0.28.1.patch"
VOLTA = ROOT / "install" / "volta.txt"
TOOLS = """awk bash basename cat cp cut df dirname env find grep gzip head ln mkdir mktemp mv nproc
    rm sed sha256sum sort tail tar""".split()
PATCHER = "patch" if shutil.which("patch") else "git"

# Stands for a Python with TensorFlow; STUB_FAILS names the step at which its pip or build fails.
PYTHON = """#!{executable} -S
import os, pathlib, shutil, sys
arguments, line = sys.argv[1:], " ".join(sys.argv[1:])
fails, stage = os.environ.get("STUB_FAILS", ""), pathlib.Path(os.environ["STUB_STAGE"])
with open(stage / "calls", "a") as calls:
    print(line, file=calls)
value_of = lambda flag: pathlib.Path(arguments[arguments.index(flag) + 1])
if arguments[0] == "-":
    print("py311-tensorflow-cpu-2.21.0-x86_64")
elif "sys.exit(not" in line:
    sys.exit(fails == "version")
elif "Python %d" in line:
    print("Python 3.9.2")
elif "get_path" in line:
    print(stage)
elif "nvidia.nccl" in line:
    print(stage / "nccl")
elif 'version("nvidia-nccl-cu12")' in line:
    print("2.32.3")
elif "importlib.metadata" in line:
    sys.exit(1)
elif "-m venv" in line:
    folder = pathlib.Path(arguments[-1]) / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.argv[0])
    (folder / "activate").write_text(str(folder.parent.absolute()))
elif "pip download" in line:
    shutil.copy(stage / "horovod-0.28.1.tar.gz", value_of("-d"))
elif "pip wheel" in line:
    print("mpi_ops.cc:60:1: error: no such thing")
    if fails == "wheel":
        sys.exit(1)
    sources = pathlib.Path(arguments[-1]) / "horovod" / "tensorflow"
    shutil.copytree(sources, stage / "built", dirs_exist_ok=True)
    (stage / "environment").write_text("\\n".join("=".join(pair) for pair in os.environ.items()))
    value_of("-w").mkdir()
    (value_of("-w") / "horovod-0.28.1-cp311.whl").write_text("wheel")
elif "pip install" in line and fails == "disk":
    sys.exit("OSError: [Errno 28] No space left on device")
elif fails == "load" and "import horovod" in line:
    sys.exit("ImportError: undefined symbol")
"""


class Machine:
    """A clone of the project on a machine whose only programs are those of a folder."""

    def __init__(self, folder):
        self.stage, self.clone, self.path = folder, folder / "clone", folder / "bin"
        for each in (self.clone, self.path, folder / "tmp"):
            each.mkdir()
        shutil.copytree(ROOT / "install", self.clone / "install")
        shutil.copy(ROOT / "setup.py", self.clone)
        for tool in [*TOOLS, PATCHER]:
            (self.path / tool).symlink_to(shutil.which(tool))
        for tool in ("g++", "make", "cmake"):
            self.stub(tool, "#!/bin/sh\n")
        self.stub("python3.11", PYTHON.format(executable=sys.executable))
        write_sdist(folder)

    def stub(self, name, script):
        """Puts a script on PATH."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        return path

    def run(self, script, *arguments, **environment):
        """Runs a script of install/ with no environment except PATH and `environment`."""
        environment = {
            "PATH": self.path,
            "HOME": self.stage,
            "TMPDIR": self.stage / "tmp",
            "STUB_STAGE": self.stage,
            **environment,
        }
        return subprocess.run(
            [shutil.which("bash"), f"install/{script}", *arguments],
            cwd=self.clone,
            env={name: str(value) for name, value in environment.items()},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def horovod(self, **environment):
        """Runs install/horovod.sh with the stub Python."""
        return self.run("horovod.sh", PYTHON=self.path / "python3.11", **environment)

    def calls(self, part):
        """Returns how many calls of the stub Python so far had `part` in their arguments."""
        path = self.stage / "calls"
        return sum(part in line for line in path.read_text().splitlines()) if path.exists() else 0


def write_sdist(folder):
    """Writes the part of Horovod's sdist that the patch touches: its context and removed lines."""
    root = folder / "horovod-0.28.1"
    for part in re.split(r"^--- a/", PATCH.read_text(), flags=re.MULTILINE)[1:]:
        name, _, _, *lines = part.splitlines()
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line[1:] + "\n" for line in lines if line[:1] in (" ", "-")))
    with tarfile.open(folder / "horovod-0.28.1.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)


def error_of(done):
    """Returns the single error line with which a failed script must end."""
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("script", ["environment.sh", "horovod.sh"])
@pytest.mark.parametrize("tool", ["g++", "make", "patch"])
def test_missing_tool(machine, script, tool):
    (machine.path / (PATCHER if tool == "patch" else tool)).unlink()
    error = error_of(machine.run(script))
    assert f"needs {tool}," in error
    assert f"apt-get install {tool}" in error
    assert not (machine.clone / ".venv").exists()


def test_wrong_python_by_name(machine):
    error = error_of(machine.run("environment.sh", PYTHON="python3.11", STUB_FAILS="version"))
    assert "3.10 to 3.13" in error
    assert "Received: PYTHON=python3.11, Python 3.9.2." in error


def test_no_python_on_path(machine):
    (machine.path / "python3.11").unlink()
    error = error_of(machine.run("environment.sh"))
    assert "3.10 to 3.13; PATH has none" in error
    assert "PYTHON=" in error


def test_another_python_where_3_11_is_missing(machine):
    (machine.path / "python3.11").rename(machine.path / "python3")
    done = machine.run("environment.sh")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["environment.sh", "horovod.sh"])
def test_no_disk_space(machine, script):
    machine.stub("df", "#!/bin/sh\necho Filesystem\necho /dev/sda 9000000 8700000 300000 97% /\n")
    done = machine.horovod() if script == "horovod.sh" else machine.run(script)
    error = error_of(done)
    assert "300 MB are free" in error
    assert "Make room" in error
    assert not machine.calls("pip")  # the error comes before any download
    assert not (machine.clone / ".venv").exists()


def test_unknown_extra(machine):
    assert "Received: tpu" in error_of(machine.run("environment.sh", EXTRA="tpu"))


def test_packages_that_cannot_be_installed(machine):
    error = error_of(machine.run("environment.sh", STUB_FAILS="disk"))
    assert "could not install the packages: the disk is full" in error
    assert "build/install.log" in error
    assert not list((machine.clone / ".venv").glob("set-up*"))


def test_failed_build_shows_the_log_and_where_it_is(machine):
    done = machine.run("environment.sh", STUB_FAILS="wheel")
    error = error_of(done)
    assert "Horovod could not be built" in error
    log = re.search(r"from (\S+);", error)[1]
    assert "mpi_ops.cc:60:1: error: no such thing" in Path(log).read_text()
    assert "  | mpi_ops.cc:60:1: error: no such thing" in done.stderr
    assert not list((machine.clone / ".venv").glob("set-up*"))
    assert not list((machine.stage / "tmp").iterdir())


def test_a_build_that_cannot_be_loaded_is_not_kept(machine):
    error = error_of(machine.horovod(STUB_FAILS="load"))
    assert "could not be installed or loaded: ImportError: undefined symbol" in error
    assert not (machine.stage / ".cache").exists()


def test_sources_that_the_patch_does_not_fit(machine):
    for source in (machine.stage / "horovod-0.28.1").rglob("*.cc"):
        source.write_text("// another release\n")
    with tarfile.open(machine.stage / "horovod-0.28.1.tar.gz", "w:gz") as archive:
        archive.add(machine.stage / "horovod-0.28.1", "horovod-0.28.1")
    assert "patch does not fit" in error_of(machine.horovod())


@pytest.mark.parametrize("tool", ["patch", "git"])
def test_the_patch_is_applied(machine, tool):
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    (machine.path / PATCHER).unlink()
    (machine.path / tool).symlink_to(shutil.which(tool))
    done = machine.horovod()
    assert done.returncode == 0, done.stderr
    built = machine.stage / "built"
    assert "TENSORFLOW_VERSION < 2016000000" in (built / "xla_mpi_ops.cc").read_text()
    assert "platform_specific_handle().stream" in (built / "mpi_ops.cc").read_text()


def test_setup_runs_once(machine):
    assert machine.run("environment.sh").returncode == 0
    calls = machine.calls("")
    assert machine.run("environment.sh").stdout == ""
    assert machine.calls("") == calls

    (machine.clone / "setup.py").write_text("# another dependency")
    assert machine.run("environment.sh").returncode == 0
    assert machine.calls("-m venv") == 1  # the environment is kept,
    assert machine.calls("pip wheel") == 1  # the wheel comes from the cache,
    assert machine.calls("-e .[cpu") == 2  # pip checks the packages again


def test_interrupted_setup_runs_again(machine):
    assert machine.run("environment.sh", STUB_FAILS="wheel").returncode != 0
    assert machine.run("environment.sh").returncode == 0
    assert machine.calls("pip wheel") == 2


def test_choices_are_remembered(machine):
    gpu = {"EXTRA": "gpu", "HOROVOD_WITHOUT_MPI": "1"}
    assert machine.run("environment.sh", **gpu).returncode == 0
    assert machine.run("environment.sh").stdout == ""
    assert machine.run("environment.sh", **gpu).stdout == ""
    assert machine.calls("-e .[gpu") == 1


def test_volta_gets_the_last_cudnn_that_knows_it(machine):
    assert machine.run("environment.sh", EXTRA="volta").returncode == 0
    calls = (machine.stage / "calls").read_text()
    assert calls.index("-e .[gpu") < calls.index("-r install/volta.txt")  # which then wins
    (pin,) = re.findall(r"^nvidia-cudnn-cu12==9\.(\d+)", VOLTA.read_text(), re.MULTILINE)
    assert int(pin) < 11


def test_no_other_environment_gets_it(machine):
    assert machine.run("environment.sh", EXTRA="gpu").returncode == 0
    assert machine.calls("-r install/volta.txt") == 0


def test_the_cache_distinguishes_builds(machine):
    for environment in ({}, {"HOROVOD_CPU_OPERATIONS": "GLOO"}, {}):
        assert machine.horovod(**environment).returncode == 0
    assert machine.calls("pip wheel") == 2
    machine.stub("mpicxx", "#!/bin/sh\necho g++ -lmpi\n")
    assert machine.horovod().returncode == 0
    assert machine.calls("pip wheel") == 3


def test_a_cached_wheel_that_cannot_be_loaded_is_built_again(machine):
    assert machine.horovod().returncode == 0
    assert machine.horovod(STUB_FAILS="load").returncode != 0
    assert machine.calls("pip wheel") == 2


def test_gloo_alone_without_mpi(machine):
    assert machine.horovod().returncode == 0
    built_with = (machine.stage / "environment").read_text().splitlines()
    assert {"HOROVOD_WITH_GLOO=1", "HOROVOD_WITHOUT_MPI=1"} <= set(built_with)


def nvcc_of(machine, release, name="nvcc"):
    """Puts an nvcc of a release on PATH, as a wrapper of the one in cuda/; returns that folder."""
    home = machine.stage / "cuda"
    machine.stub(
        name,
        f'#!/bin/sh\n[ "$1" = --version ] && echo "release {release}, V{release}.1" && exit\n'
        f'echo "#\\$ TOP={home}" >&2\n',
    )
    return home


def test_gpu_build_without_nvcc(machine):
    error = error_of(machine.horovod(HOROVOD_GPU_OPERATIONS="NCCL"))
    assert "needs nvcc" in error
    assert "HOROVOD_CUDA_HOME" in error


def test_gpu_build_with_the_nvcc_of_another_cuda(machine):
    nvcc_of(machine, "13.0")
    error = error_of(machine.horovod(HOROVOD_GPU_OPERATIONS="NCCL"))
    assert "release 13.0" in error
    assert "CUDA 12" in error


def test_gpu_build_finds_cuda_nccl_and_architectures(machine):
    home = nvcc_of(machine, "12.5")
    (machine.stage / "nccl" / "lib").mkdir(parents=True)
    assert machine.horovod(HOROVOD_GPU_OPERATIONS="NCCL").returncode == 0
    built_with = set((machine.stage / "environment").read_text().splitlines())
    assert {
        f"HOROVOD_CUDA_HOME={home}",
        f"HOROVOD_NCCL_HOME={machine.stage / 'nccl'}",
        "HOROVOD_BUILD_CUDA_CC_LIST=70,80,90",
    } <= built_with
    assert os.readlink(machine.stage / "nccl" / "lib" / "libnccl.so") == "libnccl.so.2"


def test_gpu_build_leaves_volta_out_where_the_compiler_does_not_know_it(machine):
    nvcc_of(machine, "13.0", name="../toolkit/bin/nvcc")
    home = {"HOROVOD_CUDA_HOME": machine.stage / "toolkit"}
    (machine.stage / "nccl" / "lib").mkdir(parents=True)
    assert machine.horovod(HOROVOD_GPU_OPERATIONS="NCCL", **home).returncode == 0
    built_with = (machine.stage / "environment").read_text().splitlines()
    assert "HOROVOD_BUILD_CUDA_CC_LIST=80,90" in built_with


def test_gpu_build_keeps_what_the_user_set(machine):
    nvcc_of(machine, "12.8", name="../toolkit/bin/nvcc")
    mine = {
        "HOROVOD_CUDA_HOME": machine.stage / "toolkit",
        "HOROVOD_NCCL_HOME": machine.stage / "my-nccl",
        "HOROVOD_BUILD_CUDA_CC_LIST": "100",
    }
    assert machine.horovod(HOROVOD_GPU_OPERATIONS="NCCL", **mine).returncode == 0
    built_with = set((machine.stage / "environment").read_text().splitlines())
    assert {f"{name}={value}" for name, value in mine.items()} <= built_with
