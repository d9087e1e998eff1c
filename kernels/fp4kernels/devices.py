"""What a kernel runs on, and what builds it. Probed once at the edge and passed in."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fp4kernels.errors import DeviceError

_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = {*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni"}
_ISA_LEVELS = {  # best first: what the C++ kernels need of a CPU, as Linux names it
    "amx": {*_AVX512, "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
    "avx512vnni": _AVX512,
    "avxvnni": {*_AVX2, "avx_vnni"},
    "avx2": _AVX2,
    "neon": {"asimd", "asimddp"},
}
UNMEASURED = ("amx",)  # levels that no machine timed: they are for those who ask for them


@dataclass(frozen=True)
class Device:
    """One CPU or GPU. Sizes are in bytes; `cores` are SMs, or CPU cores this process may use."""

    kind: str  # "cpu" or "cuda"
    name: str
    arch: str  # "sm_90", "x86_64-avx512vnni"
    cores: int
    cache_bytes: int  # all last-level caches of the CPU cores in use, L2 of a GPU
    shared_memory: int  # per block of a GPU, opt-in; 0 on a CPU
    memory_bytes: int

    @property
    def slug(self) -> str:
        """A folder name: lower case letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {self.arch} {self.cores}".lower()).strip(
            "-"
        )

    @property
    def isa(self) -> str:
        """The instruction-set level of a CPU, the part of `arch` after the machine."""
        return self.arch.partition("-")[2]

    @property
    def has_avx512(self) -> bool:
        """Whether the level of a CPU has AVX-512 with VNNI."""
        return self.isa in ("amx", "avx512vnni")

    @property
    def compute_capability(self) -> int:
        """90 for sm_90; 0 on anything but an NVIDIA GPU."""
        return int(self.arch[3:]) if self.arch.startswith("sm_") else 0

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)


@dataclass(frozen=True)
class Toolchain:
    """Versions of all that turns a candidate into machine code on one kind of device.

    None where absent, or where that kind has no use for it.
    """

    torch: str
    triton: str | None = None
    ptxas: str | None = None  # the assembler that Triton brings
    driver: str | None = None
    compiler: str | None = None  # path of the host's C++ compiler
    compiler_version: str | None = None

    def minor(self) -> tuple[str | None, ...]:
        """What a table is tied to: major.minor of torch and Triton, and the compiler."""
        versions = {"torch": self.torch, "Triton": self.triton}
        short = [
            version and f"{name} " + ".".join(version.split("+")[0].split(".")[:2])
            for name, version in versions.items()
        ]
        return (*short, self.compiler_version)


@functools.cache
def surroundings(kind: str) -> tuple[Device, Toolchain]:
    """Probed at the first call: an op has no other way to learn where it runs."""
    return probe_device(kind), probe_toolchain(kind)


def probe_device(kind: str | None = None) -> Device:
    """The device of `kind`, or a GPU where there is one and else the CPU. Raises DeviceError.

    "cpu:avx2" is the CPU held to that instruction-set level. "cpu:amx" is the only way to AMX, whose
    kernels are proven but were never timed.
    """
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    place, _, level = kind.partition(":")
    if place == "cpu":
        return _probe_cpu() if kind == place else _at_level(_probe_cpu(), level)
    if kind != "cuda":
        raise DeviceError(
            "a device must be 'cpu' or 'cuda', or a CPU held to a level such as 'cpu:avx2', but got "
            f"{kind!r}"
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device 'cuda' needs a GPU and a CUDA build of torch, but torch {torch.__version__} "
            "sees no GPU; check nvidia-smi, or pass --device cpu"
        )
    return _probe_cuda()


def _at_level(cpu: Device, level: str) -> Device:
    """This machine's CPU held to an instruction-set level. Raises DeviceError where it lacks it."""
    levels = own_levels()
    if level not in levels:
        raise DeviceError(
            f"a CPU is held to a level that it reports, but got {level!r} on {cpu.name}, which has "
            f"{', '.join(levels)}; name one of these, or pass plain cpu"
        )
    return replace(cpu, arch=f"{cpu.arch.partition('-')[0]}-{level}")


def probe_toolchain(kind: str) -> Toolchain:
    """What builds kernels for a "cpu" or "cuda" device."""
    if kind == "cuda":
        return Toolchain(
            torch=str(torch.__version__),
            triton=_version_of("triton"),
            ptxas=_ptxas(),
            driver=_driver(),
        )
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return Toolchain(
        torch=str(torch.__version__),
        compiler=compiler,
        compiler_version=_first_line([compiler, "--version"]) if compiler else None,
    )


def _probe_cpu() -> Device:
    machine, fields = platform.machine(), _cpuinfo()
    name = re.search(r"^model name\s*:\s*(.+)$", fields, re.MULTILINE)
    cpus = usable_cpus()
    return Device(
        kind="cpu",
        name=name[1].strip() if name else (platform.processor() or machine),
        arch=f"{machine}-{default_level(isa_levels(fields))}",
        cores=len(cpus),
        cache_bytes=last_level_caches(cpus, Path("/sys/devices/system/cpu")),
        shared_memory=0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def own_levels() -> tuple[str, ...]:
    """`isa_levels` of this machine."""
    return isa_levels(_cpuinfo())


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(errors="replace") if info.exists() else ""


def default_level(levels: Sequence[str]) -> str:
    """The best of `levels` that was measured."""
    return next(level for level in levels if level not in UNMEASURED)


def isa_levels(cpuinfo: str) -> tuple[str, ...]:
    """What a CPU can run of the levels that C++ kernels are built for, best first.

    `cpuinfo` is the text of Linux's /proc/cpuinfo; of another system only "portable" is known.
    """
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    reported = set(flags[1].split()) if flags else set()
    return (*(level for level, needs in _ISA_LEVELS.items() if needs <= reported), "portable")


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may keep busy: its affinity mask, cut to what its
    cgroup's quota pays for. Threads beyond that would be stopped in the middle of their work."""
    if hasattr(os, "sched_getaffinity"):
        mask = sorted(os.sched_getaffinity(0))
    else:
        mask = [*range(os.cpu_count() or 1)]
    quota = cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return tuple(mask if quota is None else mask[: max(1, int(quota))])


def cpu_quota(groups: Path, membership: Path) -> float | None:
    """CPUs' worth of time that the process's control groups (version 2) allow; None for all."""
    found = []
    try:
        own = membership.read_text().partition("0::/")[2].splitlines()[0]
        for folder in (groups / own, *(groups / own).parents):
            if (folder / "cpu.max").exists():
                limit, period = (folder / "cpu.max").read_text().split()
                if limit != "max":
                    found.append(int(limit) / int(period))
    except (OSError, ValueError, IndexError):  # another system
        return None
    return min(found, default=None)


def last_level_caches(cpus: Iterable[int], system: Path) -> int:
    """Bytes of all last-level caches that `cpus` use; 32 MiB where the system does not say.

    A server has several, and what is to be cold for all cores must fill them all.
    """
    found: dict[str, int] = {}
    for cpu in cpus:
        levels = {
            int((folder / "level").read_text()): folder
            for folder in (system / f"cpu{cpu}" / "cache").glob("index*")
        }
        if levels:
            last = levels[max(levels)]
            size = re.fullmatch(r"(\d+)([KMG])", (last / "size").read_text().strip())
            sharers = (last / "shared_cpu_list").read_text().strip()
            found[sharers] = int(size[1]) << {"K": 10, "M": 20, "G": 30}[size[2]] if size else 0
    return sum(found.values()) or 32 << 20


def _probe_cuda() -> Device:
    properties = torch.cuda.get_device_properties(0)
    arch = f"sm_{properties.major}{properties.minor}"
    shared = getattr(properties, "shared_memory_per_block_optin", 48 << 10)
    if torch.version.hip:  # torch calls AMD's GPUs "cuda", too: gfx942:sramecc+:xnack-
        arch = properties.gcnArchName.partition(":")[0]
        shared = properties.shared_memory_per_block
    return Device(
        kind="cuda",
        name=properties.name,
        arch=arch,
        cores=properties.multi_processor_count,
        cache_bytes=properties.L2_cache_size,
        shared_memory=shared,
        memory_bytes=properties.total_memory,
    )


def _ptxas() -> str | None:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    release = re.search(r"V[\d.]+", _output_of([str(binary), "--version"]))
    return release[0] if release else None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _first_line(query) if shutil.which("nvidia-smi") else None


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    return _output_of(command).partition("\n")[0].strip() or None


def _output_of(command: list[str]) -> str:
    """What a command prints; nothing where it cannot be run."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout
