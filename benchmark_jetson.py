"""Table III: latency and accuracy of the exported student on the machine at hand.

Reads   <engine-dir>/student_{fp32,fp16,int8}.engine; eval_frames.npz and student.json there, for the accuracy.
        Without TensorRT: the .onnx files instead, in ONNX Runtime on the CPU, which the table then says.
        --build: the .onnx files.
Writes  --build: <engine-dir>/student_*.engine, timing.cache, and in student.json what built them.
        <engine-dir>/table_3.md, table_3.json and table_3.csv, and prints the table; latency.png, histograms and
        latencies over time, where matplotlib is installed.

This file runs alone: copy it beside the folder of engines. It needs Python 3.8 and numpy, and on a Jetson tensorrt and
CUDA's runtime library, both from JetPack (5.1 or newer); it takes pycuda where that is installed. An engine runs only
on the kind of GPU and the TensorRT version that built it, so build them on the Jetson from the .onnx files:

    python3 benchmark_jetson.py --engine-dir ./engines/ --build

Fix the clocks first (sudo nvpmodel -m 0; sudo jetson_clocks), or the figures are those of an idle board waking up.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Union

import numpy as np

PRECISIONS = ("fp32", "fp16", "int8")
INPUT, DEPTH, SEG = "rgb", "depth", "seg"
IGNORE = 255
MEBIBYTE = 2.0**20
EXIT_USAGE = 2
EXIT_STOPPED = 75  # a signal ended the script before it was done
SLICE = 1.0  # seconds that a precision is measured for before the next one has its turn
SLOWDOWN = 0.05  # rise of the median latency during a run that is reported
STREAMS = 2  # inferences under way at a time: one computes while the other is copied
Outputs = Tuple[np.ndarray, np.ndarray]  # depth float32 [H,W] in metres, seg float32 [classes,H,W]


class BenchmarkError(Exception):
    """Input that is wrong in a way the user can mend; the message is one line."""


# ---------------------------------------------------------------------------------------------------- the two runtimes


class Cudart:
    """CUDA's runtime library by ctypes, with the names and calls of pycuda.driver that this script uses.

    pycuda has no wheel for a Jetson's Python; the library is part of JetPack.
    """

    def __init__(self, library: Any):
        """Take the first GPU; raises BenchmarkError if there is none, or its driver is too old for the library."""
        self.library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self.call("cudaGetDeviceCount", ctypes.byref(count))
        self.call("cudaSetDevice", ctypes.c_int(0))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; raises BenchmarkError with the library's message if it fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            reason = self.library.cudaGetErrorString(ctypes.c_int(code)).decode("ascii", "replace")
            raise BenchmarkError(f"{name} failed: {reason} (CUDA error {code})")

    def device_name(self) -> str:
        """Name of the GPU."""
        properties = ctypes.create_string_buffer(1 << 14)  # cudaDeviceProp of any version; the name comes first
        self.call("cudaGetDeviceProperties", properties, ctypes.c_int(0))
        return properties.value.decode("utf-8", "replace")

    def compute_capability(self) -> Tuple[int, int]:
        """(major, minor) of the GPU."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        for value, attribute in ((major, 75), (minor, 76)):  # cudaDevAttrComputeCapabilityMajor, ...Minor
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
        return major.value, minor.value

    def mem_get_info(self) -> Tuple[int, int]:
        """(free, total) bytes of the GPU's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def mem_alloc(self, size: int) -> CudartObject:
        """Device memory; int() of it is its address."""
        return CudartObject(self, "cudaMalloc", "cudaFree", ctypes.c_size_t(size))

    def pagelocked_empty(self, shape: Tuple[int, ...], dtype: Any) -> np.ndarray:
        """Uninitialised array in page-locked host memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = CudartObject(self, "cudaMallocHost", "cudaFreeHost", ctypes.c_size_t(size))
        buffer = (ctypes.c_char * size).from_address(int(memory))
        buffer.memory = memory  # the array keeps the buffer, the buffer the memory
        return np.frombuffer(buffer, dtype).reshape(shape)

    def memcpy_htod_async(self, device: Any, host: np.ndarray, stream: CudaStream) -> None:
        """Copy an array to device memory."""
        self._copy(int(device), host.ctypes.data, host.nbytes, 1, stream)

    def memcpy_dtoh_async(self, host: np.ndarray, device: Any, stream: CudaStream) -> None:
        """Copy device memory to an array."""
        self._copy(host.ctypes.data, int(device), host.nbytes, 2, stream)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: CudaStream) -> None:
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size)
        self.call("cudaMemcpyAsync", *pointers, ctypes.c_int(kind), ctypes.c_void_p(stream.handle))

    def Stream(self) -> CudaStream:
        """A stream of its own."""
        return CudaStream(self)

    def Event(self) -> CudaEvent:
        """A mark in a stream."""
        return CudaEvent(self)


class CudartObject:
    """What a call of the runtime library makes, as long as this object lives; int() of it is its address."""

    def __init__(self, cuda: Cudart, make: str, destroy: str, *arguments: Any):
        self.cuda, self.destroy, self.address = cuda, destroy, ctypes.c_void_p()
        cuda.call(make, ctypes.byref(self.address), *arguments)

    def __int__(self) -> int:
        return self.address.value or 0

    def __del__(self) -> None:
        if self.address:
            getattr(self.cuda.library, self.destroy)(self.address)  # an error at the end of the process says nothing


class CudaStream(CudartObject):
    """Work of the GPU that is done in order."""

    def __init__(self, cuda: Cudart):
        super().__init__(cuda, "cudaStreamCreate", "cudaStreamDestroy")
        self.handle = int(self)

    def synchronize(self) -> None:
        """Wait until all of its work is done."""
        self.cuda.call("cudaStreamSynchronize", self.address)


class CudaEvent(CudartObject):
    """A mark in a stream, with the GPU's time."""

    def __init__(self, cuda: Cudart):
        super().__init__(cuda, "cudaEventCreate", "cudaEventDestroy")

    def record(self, stream: CudaStream) -> None:
        """Mark the end of what the stream has been given so far."""
        self.cuda.call("cudaEventRecord", self.address, ctypes.c_void_p(stream.handle))

    def time_till(self, other: CudaEvent) -> float:
        """Milliseconds between this mark and a later one."""
        elapsed = ctypes.c_float()
        self.cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), self.address, other.address)
        return elapsed.value


CUDART = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")  # of CUDA 13, 12 and 11.x


def load_cudart() -> Any:
    """CUDA's runtime library: the system's, that of /usr/local/cuda, or the one of a Python package of NVIDIA's.

    Raises BenchmarkError if there is none.
    """
    packages = [Path(folder) for folder in site.getsitepackages()]
    folders = [Path("/usr/local/cuda/lib64"), *(lib for package in packages for lib in package.glob("nvidia/*/lib"))]
    for name in [*CUDART, *(str(folder / name) for folder in folders for name in CUDART)]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BenchmarkError(
        f"TensorRT is here, but CUDA's runtime library is not ({', '.join(CUDART)}): install it (on a Jetson: sudo apt "
        "install nvidia-jetpack), add its folder to LD_LIBRARY_PATH, or install pycuda"
    )


def find_cuda() -> Tuple[Any, str, Tuple[int, int]]:
    """(pycuda.driver or Cudart, name of the GPU, its compute capability); raises BenchmarkError without a GPU."""
    try:
        import pycuda.autoinit
        import pycuda.driver
    except Exception:  # without a GPU pycuda raises errors of its own, which can't be named without it
        cudart = Cudart(load_cudart())
        return cudart, cudart.device_name(), cudart.compute_capability()
    gpu = pycuda.autoinit.device
    return pycuda.driver, gpu.name(), gpu.compute_capability()


class TensorRTStudent:
    """An engine, with the calls that TensorRT 8.5 to 11 have in common."""

    def __init__(self, path: Path, trt: ModuleType, cuda: Any, loaded: Any = None):
        """Load an engine onto the GPU, or share a loaded one; raises BenchmarkError if it was built for another GPU."""
        self.path, self.trt, self.cuda = path, trt, cuda
        free_before = cuda.mem_get_info()[0]
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = loaded or self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise BenchmarkError(
                f"TensorRT {trt.__version__} can't load {path}: it was built by a different version or on a "
                "different kind of GPU; build it here: --build"
            )
        self.context = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        types = {trt.float32: np.float32}
        input_types = {**types, trt.uint8: np.uint8}  # the camera's frames as they are (export_trt.py --uint8-input)
        self.host: Dict[str, np.ndarray] = {}
        self.device: Dict[str, Any] = {}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            dtype = (input_types if name == INPUT else types).get(self.engine.get_tensor_dtype(name))
            if dtype is None:
                raise BenchmarkError(f"{path}: tensor {name} is not float32{' or uint8' if name == INPUT else ''}")
            # pinned, else the copies wait for the CPU
            self.host[name] = cuda.pagelocked_empty(tuple(self.engine.get_tensor_shape(name)), dtype)
            self.device[name] = cuda.mem_alloc(self.host[name].nbytes)
            self.context.set_tensor_address(name, int(self.device[name]))
        if set(self.host) != {INPUT, DEPTH, SEG}:
            raise BenchmarkError(f"{path} has the tensors {sorted(self.host)}, not {INPUT}, {DEPTH}, {SEG}")
        self.size = image_size(path, self.host[INPUT].shape, self.host[INPUT].dtype)
        self.marks = [cuda.Event() for _ in range(4)]
        self.run()  # what TensorRT allocates on first use belongs to the engine's memory
        self.memory_bytes = max(free_before - cuda.mem_get_info()[0], 0)

    def prepare(self, image: np.ndarray) -> None:
        """Take the next image, uint8 [H,W,3]."""
        self.host[INPUT][...] = as_input(image, self.host[INPUT].dtype)

    def sibling(self) -> TensorRTStudent:
        """The same engine with a stream and tensors of its own, to run beside this one."""
        return TensorRTStudent(self.path, self.trt, self.cuda, self.engine)

    def run(self) -> None:
        """One inference from image in host memory to answers in host memory."""
        self.start()
        self.wait()

    def start(self) -> None:
        """Begin an inference; wait() is its end."""
        self.marks[0].record(self.stream)
        self.cuda.memcpy_htod_async(self.device[INPUT], self.host[INPUT], self.stream)
        self.marks[1].record(self.stream)
        if not self.context.execute_async_v3(self.stream.handle):
            raise BenchmarkError("TensorRT could not run the engine; its message stands above")
        self.marks[2].record(self.stream)
        for name in (DEPTH, SEG):
            self.cuda.memcpy_dtoh_async(self.host[name], self.device[name], self.stream)
        self.marks[3].record(self.stream)

    def wait(self) -> None:
        """Until what was started has ended."""
        self.stream.synchronize()

    def parts(self) -> Dict[str, float]:
        """Milliseconds of the last run on the GPU's clock: copy in, compute, copy out."""
        names = ("h2d_ms", "compute_ms", "d2h_ms")
        return {name: self.marks[n].time_till(self.marks[n + 1]) for n, name in enumerate(names)}

    def outputs(self) -> Outputs:
        """Answers of the last run; they change with the next one."""
        return self.host[DEPTH][0, 0], self.host[SEG][0]


class OnnxRuntimeStudent:
    """An ONNX file on the CPU: shows that a graph works and how accurate it is, not how fast a Jetson is."""

    memory_bytes = None

    def __init__(self, path: Path, onnxruntime: ModuleType, threads: int):
        """Load an ONNX file; raises BenchmarkError when it is broken or has different tensors."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BenchmarkError(f"{path} can't be loaded by ONNX Runtime: {error}") from None
        tensors = {value.name: value for value in self.session.get_inputs() + self.session.get_outputs()}
        if set(tensors) != {INPUT, DEPTH, SEG}:
            raise BenchmarkError(f"{path} has the tensors {sorted(tensors)}, not {INPUT}, {DEPTH}, {SEG}")
        self.dtype = np.dtype(np.uint8 if tensors[INPUT].type == "tensor(uint8)" else np.float32)
        self.size = image_size(path, tensors[INPUT].shape, self.dtype)

    def prepare(self, image: np.ndarray) -> None:
        """Take the next image, uint8 [H,W,3]."""
        self.rgb = as_input(image, self.dtype)

    def run(self) -> None:
        """One inference."""
        self.answers = self.session.run([DEPTH, SEG], {INPUT: self.rgb})

    def parts(self) -> Dict[str, float]:
        """Nothing: there are no copies to tell from the computing."""
        return {}

    def outputs(self) -> Outputs:
        """Answers of the last run."""
        return self.answers[0][0, 0], self.answers[1][0]


Student = Union[TensorRTStudent, OnnxRuntimeStudent]


def image_size(path: Path, shape: Sequence[Union[int, str, None]], dtype: np.dtype) -> Tuple[int, int]:
    """(height, width) of the images that a model takes.

    Args:
        path: the model, for the message.
        shape: of its input: [1,H,W,3] for uint8, [1,3,H,W] for float32. A dynamic size is a name or None.
        dtype: of its input.

    Raises BenchmarkError for any other shape.
    """
    order = "[1,H,W,3]" if dtype == np.uint8 else "[1,3,H,W]"
    sizes = [size for size in shape if isinstance(size, int) and size > 0]
    if len(sizes) == len(shape) == 4:
        batch, height, width, channels = sizes if dtype == np.uint8 else [sizes[0], *sizes[2:], sizes[1]]
        if (batch, channels) == (1, 3):
            return height, width
    raise BenchmarkError(f"{path}: {INPUT} has the shape {list(shape)}, not {order}: export it with export_trt.py")


def as_input(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """uint8 [H,W,3] to what an input of a type takes: the same as uint8 [1,H,W,3], or float32 [1,3,H,W] in 0..1."""
    if dtype == np.uint8:
        return image[None]
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


class Backend(NamedTuple):
    """What runs the student here."""

    name: str
    device: str
    suffix: str  # of the files that it loads
    load: Callable[[Path], Student]
    notice: Optional[str] = None  # what the reader of the table must know
    build: Optional[Callable[[Path, dict], bytes]] = None  # (ONNX file, its entry of student.json) to an engine's bytes
    built_by: Dict[str, str] = {}  # what an engine is bound to, as it is noted in student.json


def find_backend(threads: int) -> Backend:
    """TensorRT if it is installed, else ONNX Runtime on the CPU.

    Raises BenchmarkError when there is neither, and when TensorRT is installed but no GPU can be used: latencies of the
    CPU would look like an answer.
    """
    try:
        import tensorrt as trt
    except ImportError as error:
        return _onnx_runtime(threads, str(error))
    if not hasattr(trt.ICudaEngine, "num_io_tensors"):
        raise BenchmarkError(f"TensorRT {trt.__version__} is too old: 8.5 (JetPack 5.1) or newer is needed")
    cuda, gpu, capability = find_cuda()
    return Backend(
        f"TensorRT {trt.__version__}",
        f"{board()}, GPU {gpu}",
        ".engine",
        lambda path: TensorRTStudent(path, trt, cuda),
        build=lambda path, entry: build_engine(trt, path.read_bytes(), entry, path.parent / "timing.cache"),
        built_by=identity(trt, gpu, capability),
    )


def _onnx_runtime(threads: int, reason: str) -> Backend:
    try:
        import onnxruntime
    except ImportError as error:
        raise BenchmarkError(
            f"neither TensorRT ({reason}) nor ONNX Runtime ({error}) can be used: install one"
        ) from None
    return Backend(
        f"ONNX Runtime {onnxruntime.__version__} on the CPU",
        f"{board()}, {threads} threads" if threads else board(),
        ".onnx",
        lambda path: OnnxRuntimeStudent(path, onnxruntime, threads),
        notice=f"NOT TensorRT ({reason}): latencies are this CPU's and say nothing about a Jetson",
    )


def board() -> str:
    """Name of the machine: a Jetson's model, else the processor's."""
    model = Path("/proc/device-tree/model")
    if model.is_file():
        return model.read_bytes().decode("ascii", "replace").strip("\0\n ")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def board_state() -> Dict[str, Optional[str]]:
    """What a Jetson's figures depend on: its L4T release (JetPack's name for it) and power mode; None elsewhere."""
    release, mode = Path("/etc/nv_tegra_release"), None
    if shutil.which("nvpmodel"):
        try:
            done = subprocess.run(["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
            mode = " ".join(done.stdout.decode("utf-8", "replace").split()) or None
        except subprocess.TimeoutExpired:
            pass
    lines = release.read_text().splitlines() if release.is_file() else []
    return {"L4T": lines[0].strip("# ") if lines else None, "power mode": mode}


# What a Jetson draws, by the names that its tegrastats gives the rails: the input where a sensor measures it, else the
# rails that add up to the module's power. AGX Orin's VIN_SYS_5V0 feeds its memory, VDDQ_VDD2_1V8AO, which is not added.
POWER_RAILS = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX, TX2
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # AGX Thor: with the carrier board
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


def read_power(text: str) -> Tuple[Optional[float], Optional[str]]:
    """Mean power in W of tegrastats' lines, and the rails that it is the sum of; None where there are no such rails."""
    # a rail is NAME now/average, in milliwatts, with the unit since L4T 32.7; RAM and SWAP are in MB
    found = re.findall(r"(?<!\S)([A-Z]\w*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?!\S)", text)
    for rails in POWER_RAILS:
        readings = [[float(value) for name, value in found if name == rail] for rail in rails]
        if all(readings):
            return sum(sum(values) / len(values) for values in readings) / 1000, " + ".join(rails)
    return None, None


class Sensors:
    """Power, temperature and clock of a Jetson while a block runs, as its tegrastats prints them."""

    def __enter__(self) -> Sensors:
        self.log, self.process = tempfile.TemporaryFile(), None
        if shutil.which("tegrastats"):
            self.process = subprocess.Popen(
                ["tegrastats", "--interval", "100"], stdout=self.log, stderr=subprocess.DEVNULL
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
        self.log.seek(0)
        self.text = self.log.read().decode("utf-8", "replace")
        self.log.close()


def sensor_readings(text: str) -> Dict[str, Union[float, str, None]]:
    """Means of tegrastats' lines, and the rails whose power was added up; None for what it does not print."""
    patterns = {
        "gpu_celsius": r"\b(?:gpu|GPU)@(\d+(?:\.\d+)?)C",
        "gpu_mhz": r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)",
    }
    found = {name: [float(value) for value in re.findall(pattern, text)] for name, pattern in patterns.items()}
    means = {name: sum(values) / len(values) if values else None for name, values in found.items()}
    power, rails = read_power(text)
    return {"power_w": power, "power_rails": rails, **means}


def find_models(engine_dir: Path, backend: Backend) -> List[Tuple[str, Path]]:
    """(precision, file) of what the backend can run; raises BenchmarkError when the folder holds nothing for it."""
    if not engine_dir.is_dir():
        raise BenchmarkError(f"there is no folder {engine_dir}; export_trt.py writes one")
    paths = [(precision, engine_dir / f"student_{precision}{backend.suffix}") for precision in PRECISIONS]
    found = [(precision, path) for precision, path in paths if path.is_file()]
    if found:
        return found
    other = sorted(path.name for path in engine_dir.glob("student_*.*") if path.suffix in (".engine", ".onnx"))
    hint = f"it has {', '.join(other)}; " if other else ""
    how = "build engines here: --build" if backend.suffix == ".engine" else "run export_trt.py"
    raise BenchmarkError(f"{engine_dir} has no student_*{backend.suffix} for {backend.name}; {hint}{how}")


# ------------------------------------------------------------------------------------------------------------- engines

WORKSPACE = 1 << 30  # bytes that a layer may take; without a limit TensorRT tries what takes all of a Jetson's memory


def identity(trt: ModuleType, gpu: str, capability: Sequence[int]) -> Dict[str, str]:
    """What an engine built here is bound to."""
    return {"tensorrt": trt.__version__, "gpu": gpu, "compute_capability": ".".join(map(str, capability))}


def is_strongly_typed(trt: ModuleType) -> bool:
    """Whether this generation (10 and later) can take each tensor's type from the graph."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def parse_graph(trt: ModuleType, graph: bytes) -> Tuple[Any, Any, Any]:
    """TensorRT's builder, network and parser of an ONNX graph; all three must live until the engine is built.

    Raises BenchmarkError when there is no GPU to build for or the parser does not take the graph.
    """
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if is_strongly_typed(trt) else flags.EXPLICIT_BATCH
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what the binding makes of a null pointer
        raise BenchmarkError(f"TensorRT {trt.__version__} finds no usable GPU ({error})") from None
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BenchmarkError(f"TensorRT {trt.__version__} does not take the graph: {problems}")
    return builder, network, parser


def build_engine(trt: ModuleType, graph: bytes, entry: dict, cache: Path) -> bytes:
    """A serialised engine of an ONNX graph, in the graph's own precisions, for the GPU at hand.

    Args:
        trt: the tensorrt module, 8.5 or newer.
        graph: a serialised ONNX model.
        entry: of student.json's precisions: float32_layers, names of the layers that 8.5 and 8.6, whose networks are
            not strongly typed, must compute in float32 (None: all of them), and int8, whether there are quantised ones.
        cache: file of layers' timings, which the next engine's build takes less long with.

    Raises BenchmarkError like parse_graph(), and when the build fails.
    """
    builder, network, parser = parse_graph(trt, graph)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are no float32
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    if timings is None or not config.set_timing_cache(timings, False):  # of a different GPU or version
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    if not is_strongly_typed(trt) and entry.get("float32_layers") is not None:
        keep_types(trt, network, config, set(entry["float32_layers"]), bool(entry.get("int8")))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BenchmarkError(f"TensorRT {trt.__version__} could not build an engine; its messages stand above")
    write_file(cache, bytes(timings.serialize()))
    return bytes(engine)


def keep_types(trt: ModuleType, network: Any, config: Any, float32_layers: Set[str], int8: bool) -> None:
    """Have 8.5 and 8.6 compute in float16, and int8 if asked, all but the layers of these names."""
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if int8:
        config.set_flag(trt.BuilderFlag.INT8)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in float32_layers:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)


def build_engines(engine_dir: Path, backend: Backend) -> None:
    """Build the engine of every graph that student.json describes, and note it there."""
    if backend.build is None:
        raise BenchmarkError(f"--build takes TensorRT and a GPU; {backend.notice}")
    description = read_description(engine_dir)
    for entry in description.get("precisions", []):
        path = engine_dir / entry["onnx"]["file"]
        refuse_foreign(path, description, backend)
        engine = path.with_suffix(".engine")
        print(f"building {engine}: takes minutes", file=sys.stderr)
        write_file(engine, backend.build(path, entry))
        entry["engine"] = {"file": engine.name, "bytes": engine.stat().st_size, "sha256": sha256_of(engine)}
        entry["engine"].update(backend.built_by)
        write_file(engine_dir / "student.json", (json.dumps(description, indent=2) + "\n").encode("utf-8"))


def read_description(engine_dir: Path) -> dict:
    """student.json; empty when the folder has none; raises BenchmarkError when it is not what export_trt.py writes."""
    path = engine_dir / "student.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        for entry in description.get("precisions", []):
            for kind in ("onnx", "engine"):
                if entry[kind] is not None:
                    name, digest = entry[kind]["file"], entry[kind]["sha256"]
                    if Path(name).name != name or not isinstance(digest, str):
                        raise ValueError(f"it names {name!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BenchmarkError(f"{path} is not what export_trt.py writes: {error}") from None
    return description


def refuse_foreign(path: Path, description: dict, backend: Backend) -> Optional[str]:
    """Raise BenchmarkError for a file that is not the described one, or an engine built for a different machine.

    Returns a warning for an engine of a folder whose student.json describes neither it nor its graph.
    """
    pairs = [(entry["onnx"], entry["engine"]) for entry in description.get("precisions", [])]
    described = {entry["file"]: entry for pair in pairs for entry in pair if entry}
    entry = described.get(path.name)
    if entry is None and path.suffix == ".onnx":
        return None
    if entry is None and path.with_suffix(".onnx").name not in described:
        return f"nothing in the folder says which graph {path.name} was built from: it may be another student's"
    if entry is None or path.is_file() and sha256_of(path) != entry["sha256"]:
        how = "build it here: --build" if path.suffix == ".engine" else "copy the whole folder again"
        raise BenchmarkError(f"{path} is not what student.json describes, so it may be another student's: {how}")
    if not path.is_file():
        raise BenchmarkError(f"{path}, which student.json describes, is missing: copy the whole folder")
    foreign = [name for name, here in backend.built_by.items() if entry.get(name, here) != here]
    if path.suffix == ".engine" and foreign:
        differences = ", ".join(f"{name} {entry[name]}, not {backend.built_by[name]}" for name in foreign)
        raise BenchmarkError(f"{path} was built for {differences}: build it here: --build")
    return None


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------------- latency


class Floors(NamedTuple):
    """What a precision is measured for at the least, and warmed up for before that."""

    seconds: float
    inferences: int
    warmup_seconds: float


class Samples:
    """Measurements of one precision, one value an inference; sensors: tegrastats' lines of the same time."""

    def __init__(self) -> None:
        self.values: Dict[str, List[float]] = {"latency_ms": [], "input_ms": [], "at_s": []}
        self.sensors = ""
        self.images = 0

    def done(self, floors: Floors) -> bool:
        """Whether both floors are reached."""
        latency, spent = self.values["latency_ms"], sum(self.values["latency_ms"]) + sum(self.values["input_ms"])
        return len(latency) >= floors.inferences and spent >= 1000 * floors.seconds


def measure(
    students: Mapping[str, Student], images: Sequence[np.ndarray], floors: Floors, clock: Callable[[], float]
) -> Dict[str, Samples]:
    """Time inferences one after the other, from image in host memory to answers in host memory.

    The precisions take turns of SLICE seconds, in a different order each round, so that a board that warms up slows all
    of them alike. Each stops when it has reached its floors.

    Args:
        students: {precision: what is timed}.
        images: uint8 [H,W,3], taken in turn.
        floors: for each precision.
        clock: seconds, as time.perf_counter.

    Returns {precision: samples}: latency_ms; input_ms, the conversion of the image to the model's input; at_s, seconds
        since the first measurement; and each of student.parts().
    """
    for student in students.values():
        _take_turn(student, images, floors.warmup_seconds, clock, Samples(), 0.0)
    found = {precision: Samples() for precision in students}
    order, began, turn = list(students), clock(), min(SLICE, floors.seconds)
    while order:
        for precision in order:
            with Sensors() as sensors:
                _take_turn(students[precision], images, turn, clock, found[precision], began)
            found[precision].sensors += sensors.text
        order = [precision for precision in (*order[1:], order[0]) if not found[precision].done(floors)]
    return found


def _take_turn(
    student: Student,
    images: Sequence[np.ndarray],
    seconds: float,
    clock: Callable[[], float],
    samples: Samples,
    began: float,
) -> None:
    """Inferences for some seconds, at least one, added to the samples."""
    turn = clock()
    while True:
        image = images[samples.images % len(images)]
        start = clock()
        student.prepare(image)
        ready = clock()
        student.run()
        end = clock()
        samples.images += 1
        values = {"latency_ms": 1000 * (end - ready), "input_ms": 1000 * (ready - start), "at_s": end - began}
        for name, value in {**values, **student.parts()}.items():
            samples.values.setdefault(name, []).append(value)
        if end - turn >= seconds:
            return


def slowdown(samples: Samples) -> float:
    """Relative change of the median latency from the first to the last third of the inferences; 0 with few of them."""
    latency = samples.values["latency_ms"]
    third = len(latency) // 3
    return float(np.median(latency[-third:]) / np.median(latency[:third]) - 1) if third > 9 else 0.0


def throughput(
    student: Student, images: Sequence[np.ndarray], inferences: int, clock: Callable[[], float]
) -> Optional[float]:
    """Images a second with STREAMS inferences under way at a time, each with its copies; None where none can be."""
    if not hasattr(student, "sibling"):
        return None
    lanes = [student] + [student.sibling() for _ in range(STREAMS - 1)]
    for number, lane in enumerate(lanes):
        lane.prepare(images[number % len(images)])
    start = clock()
    for number in range(inferences):
        lane = lanes[number % STREAMS]
        lane.wait()  # for its inference before
        lane.start()
    for lane in lanes:
        lane.wait()
    return inferences / (clock() - start)


def summarise(samples: Mapping[str, Sequence[float]]) -> Dict[str, float]:
    """The figures of one precision from measure()'s values.

    Mean, percentiles, maximum and standard deviation (jitter) of the latency; medians of the rest. frame_ms is the mean
    of input conversion and inference together. FPS is 1 / mean latency: what a loop that does nothing else reaches.
    """
    latency = np.asarray(samples["latency_ms"], dtype=np.float64)
    summary = {"inferences": len(latency), "mean_ms": float(latency.mean()), "median_ms": float(np.median(latency))}
    for percent in (90, 99):
        summary[f"p{percent}_ms"] = float(np.percentile(latency, percent))
    summary["max_ms"] = float(latency.max())
    summary["std_ms"] = float(latency.std())
    summary["fps"] = float(1000 / latency.mean())
    summary["frame_ms"] = float((latency + np.asarray(samples["input_ms"])).mean())
    parts = {name: float(np.median(values)) for name, values in samples.items() if name not in ("latency_ms", "at_s")}
    return {**summary, **parts}


# ------------------------------------------------------------------------------------------------------------ accuracy


def read_evaluation(engine_dir: Path) -> Optional[dict]:
    """Held-out frames and what is needed to score them; None when the folder has none.

    Returns: rgb uint8 [N,H,W,3], depth float32 [N,H,W] in metres of each frame's camera (0 = none), labels uint8
        [N,H,W] (255 = none), focal float32 [N], and from student.json engine_focal, the focal length that the engines'
        depth is for, and evaluated_depth_range [nearest, farthest] in metres.
    Raises BenchmarkError when a file is broken.
    """
    path, description = engine_dir / "eval_frames.npz", engine_dir / "student.json"
    if not path.is_file():
        return None
    try:
        with np.load(str(path), allow_pickle=False) as archive:
            frames = {name: archive[name] for name in ("rgb", "depth", "labels", "focal")}
        shape = frames["rgb"].shape
        if len(shape) != 4 or shape[3] != 3 or not shape[0]:
            raise ValueError(f"rgb has the shape {list(shape)}")
        for name, expected in (("depth", shape[:3]), ("labels", shape[:3]), ("focal", shape[:1])):
            if frames[name].shape != expected:
                raise ValueError(f"{name} has the shape {list(frames[name].shape)}, not {list(expected)}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"{path} is not what export_trt.py writes: {error}") from None
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        frames["engine_focal"] = float(content["camera"]["focal"])
        depth_range_key = "scored_depth" if "scored_depth" in content else "evaluated_depth_range"  # older exports' key
        frames["evaluated_depth_range"] = [float(metres) for metres in content[depth_range_key]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BenchmarkError(
            f"{description}, which says what camera the engines are for, is not readable: {error}"
        ) from None
    return frames


def accuracy(student: Student, frames: dict) -> Dict[str, Optional[float]]:
    """Depth and segmentation metrics over all held-out frames, pooled over pixels; None for what has no reference.

    rmse in metres, abs_rel = mean |p - r| / r, delta1 = fraction with max(p / r, r / p) < 1.25 (Eigen et al., NeurIPS
    2014, arXiv:1406.2283), without scale alignment; miou from one confusion matrix, over the classes that occur.
    """
    nearest, farthest = frames["evaluated_depth_range"]
    sums, confusion = np.zeros(4), np.zeros((), np.int64)
    for index in range(len(frames["rgb"])):
        student.prepare(frames["rgb"][index])
        student.run()
        depth, seg = student.outputs()
        # The engines' metres are those of one camera; the same image from a longer lens is farther away.
        depth = depth * (frames["focal"][index] / frames["engine_focal"])
        sums += depth_sums(depth, frames["depth"][index], nearest, farthest)
        confusion = confusion + confusion_matrix(seg.argmax(axis=0), frames["labels"][index], len(seg))
    pixels, squares, relative, close = sums
    results: Dict[str, Optional[float]] = dict.fromkeys(("rmse", "abs_rel", "delta1", "miou"))
    if pixels:
        results.update(rmse=(squares / pixels) ** 0.5, abs_rel=relative / pixels, delta1=close / pixels)
    if confusion.any():
        results["miou"] = mean_iou(confusion)
    return {name: None if value is None else float(value) for name, value in results.items()}


def depth_sums(predicted: np.ndarray, reference: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """[pixels, sum of squared errors, of relative errors, pixels within 1.25] of one image, both [H,W] in metres.

    A pixel without an answer (NaN, 0 or less) counts as the end of the range that is farther from the reference, and
    not as within 1.25: the less a student says, the worse it is.
    """
    mask = (reference >= nearest) & (reference <= farthest)
    p, r = predicted[mask].astype(np.float64), reference[mask].astype(np.float64)
    answered = p > 0
    p = np.clip(np.where(answered, p, np.where(r - nearest > farthest - r, nearest, farthest)), nearest, farthest)
    close = answered & (np.maximum(p / r, r / p) < 1.25)
    return np.array([len(r), ((p - r) ** 2).sum(), (np.abs(p - r) / r).sum(), close.sum()], dtype=np.float64)


def confusion_matrix(predicted: np.ndarray, reference: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes,classes]: pixels by (reference, predicted) class, without those whose reference is 255."""
    mask = reference != IGNORE
    pairs = reference[mask].astype(np.int64) * classes + predicted[mask]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that occur of TP / (TP + FP + FN)."""
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return float((hits[union > 0] / union[union > 0]).mean())


# ----------------------------------------------------------------------------------------------------------- the table

COLUMNS = (  # heading, key of a row, format
    ("precision", "precision", "{}"),
    ("runs in", "runtime", "{}"),
    ("inferences", "inferences", "{}"),
    ("mean ms", "mean_ms", "{:.2f}"),
    ("median ms", "median_ms", "{:.2f}"),
    ("p90 ms", "p90_ms", "{:.2f}"),
    ("p99 ms", "p99_ms", "{:.2f}"),
    ("max ms", "max_ms", "{:.2f}"),
    ("jitter ms", "std_ms", "{:.2f}"),
    ("FPS", "fps", "{:.1f}"),
    (f"FPS in {STREAMS} streams", "streams_fps", "{:.1f}"),
    ("input ms", "input_ms", "{:.3f}"),
    ("frame ms", "frame_ms", "{:.2f}"),
    ("H2D ms", "h2d_ms", "{:.3f}"),
    ("compute ms", "compute_ms", "{:.3f}"),
    ("D2H ms", "d2h_ms", "{:.3f}"),
    ("memory MiB", "gpu_mib", "{:.0f}"),
    ("power W", "power_w", "{:.1f}"),
    ("GPU C", "gpu_celsius", "{:.0f}"),
    ("GPU MHz", "gpu_mhz", "{:.0f}"),
    ("file MiB", "file_mib", "{:.1f}"),
    ("RMSE m", "rmse", "{:.3f}"),
    ("AbsRel", "abs_rel", "{:.3f}"),
    ("delta1", "delta1", "{:.3f}"),
    ("mIoU", "miou", "{:.3f}"),
)


def as_markdown(table: dict) -> str:
    """Table III as Markdown with its heading and what its columns mean; '-' where nothing was measured."""
    lines = [f"### {table['title']}", ""]
    if table["notice"]:
        lines += [f"**{table['notice']}**", ""]
    cells = [[heading for heading, _, _ in COLUMNS]]
    for row in table["rows"]:
        cells.append(["-" if row.get(key) is None else form.format(row[key]) for _, key, form in COLUMNS])
    lines += markdown_table(cells)
    scored = "no held-out frames with references in the folder: no accuracy"
    if table["frames"]:
        scored = f"accuracy on {table['frames']} held-out frames, pooled over pixels, depth from {{}} to {{}} m"
        scored = scored.format(*table["evaluated_depth_range"])
    memory = "of the board, which CPU and GPU share" if table["shared_memory"] else "of the GPU"
    lines += [
        "",
        f"At least {table['min_seconds']:g} s and {table['min_inferences']} inferences of one image each, after "
        f"{table['warmup_seconds']:g} s to warm up, in turns of {SLICE:g} s. Latency is from image to answers in host "
        "memory, FPS the inverse of its mean, jitter its standard deviation; input is the conversion of the camera's "
        "image to the model's input, frame both together; H2D, compute and D2H are medians on the GPU's clock; memory "
        f"is what the engine takes {memory}; {scored}.",
    ]
    rails = sorted({row["power_rails"] for row in table["rows"] if row.get("power_rails")})
    board = {**table["board"], "power": ", ".join(rails)}
    state = "; ".join(f"{name}: {value}" for name, value in board.items() if value)
    if state:
        lines += ["", state]
    return "\n".join(lines) + "\n"


def markdown_table(cells: List[List[str]]) -> List[str]:
    """The lines of a Markdown table; the first row of the cells is its heading."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [[cell.ljust(widths[column]) for column, cell in enumerate(line)] for line in cells]
    padded.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(line) + " |" for line in padded]


def as_csv(table: dict) -> str:
    """The rows of Table III with every figure in full; empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [key for _, key, _ in COLUMNS], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    return text.getvalue()


COMPARED_KEYS = ("median_ms", "p99_ms", "rmse", "delta1", "miou")
COMPARED = [(heading, key) for heading, key, _ in COLUMNS if key in COMPARED_KEYS]


def read_table(path: Path) -> dict:
    """An earlier table_3.json; raises BenchmarkError when it is not one."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table["rows"]:
            for key in ("precision", "runtime", *(key for _, key in COMPARED)):
                if not isinstance(row.get(key), (str, int, float, type(None))):
                    raise ValueError(f"{key} is {row[key]!r}")
        table["title"].strip()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BenchmarkError(f"{path} is not a table_3.json: {error}") from None
    return table


def comparison(table: dict, earlier: dict) -> str:
    """What has changed since an earlier table, as Markdown: earlier -> now (change) for each precision in both."""
    before = {row["precision"]: row for row in earlier["rows"]}
    cells = [["precision", *(heading for heading, _ in COMPARED)]]
    for row in table["rows"]:
        if row["precision"] in before:
            pairs = [(before[row["precision"]].get(key), row.get(key)) for _, key in COMPARED]
            cells.append([row["precision"], *(change(old, new) for old, new in pairs)])
    lines = ["", f"Since {earlier['title']}:", ""]
    return "\n".join(lines + markdown_table(cells)) + "\n"


def change(old: Optional[float], new: Optional[float]) -> str:
    """'old -> new (+x %)'; '-' where either is missing."""
    if old is None or new is None:
        return "-"
    percent = f" ({100 * (new / old - 1):+.1f} %)" if old else ""
    return f"{old:.3f} -> {new:.3f}{percent}"


def draw_latencies(samples: Mapping[str, Samples], path: Path) -> bool:
    """Draw each precision's latencies as a histogram and over time; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(samples), 2, figsize=(12, 2.4 * len(samples)), squeeze=False)
    for (histogram, course), (precision, found) in zip(axes, samples.items()):  # noqa: B905  # Python 3.8
        latency = found.values["latency_ms"]
        histogram.hist(latency, bins=60)
        histogram.axvline(float(np.median(latency)), color="black", linewidth=1)
        histogram.set_title(f"{precision}: {len(latency)} inferences, median {np.median(latency):.2f} ms")
        histogram.set_ylabel("inferences")
        course.plot(found.values["at_s"], latency, ".", markersize=2)
        course.set_ylabel("latency, ms")
    axes[-1, 0].set_xlabel("latency, ms")
    axes[-1, 1].set_xlabel("time since the first measurement, s")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    pyplot.close(figure)
    write_file(path, picture.getvalue())
    return True


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix="." + path.name, dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, str(path))
    except BaseException:
        os.unlink(temporary)
        raise


def benchmark(engine_dir: Path, backend: Backend, floors: Floors) -> Tuple[dict, Dict[str, Samples]]:
    """Table III of a folder as plain values (title, notice, rows, how they were measured); samples by precision."""
    models = find_models(engine_dir, backend)
    frames, description = read_evaluation(engine_dir), read_description(engine_dir)
    notices = [backend.notice]
    students: Dict[str, Student] = {}
    for precision, path in models:
        notices.append(refuse_foreign(path, description, backend))
        students[precision] = backend.load(path)
        height, width = students[precision].size
        if frames is not None and frames["rgb"].shape[1:3] != (height, width):
            raise BenchmarkError(f"{path} takes images of {width}x{height}, eval_frames.npz has others: export anew")
    if len({student.size for student in students.values()}) > 1:
        raise BenchmarkError(f"the models of {engine_dir} take images of different sizes: export anew")
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    images = [noise] if frames is None else list(frames["rgb"])
    print(f"measuring {', '.join(path.name for _, path in models)}", file=sys.stderr, flush=True)
    samples = measure(students, images, floors, time.perf_counter)
    rows = []
    for precision, path in models:
        student, found = students[precision], samples[precision]
        row: Dict[str, Any] = {"precision": precision, "runtime": backend.name}
        row["file_mib"] = path.stat().st_size / MEBIBYTE
        row.update(summarise(found.values))
        row.update(sensor_readings(found.sensors))
        row["streams_fps"] = throughput(student, images, floors.inferences, time.perf_counter)
        row["gpu_mib"] = None if student.memory_bytes is None else student.memory_bytes / MEBIBYTE
        row.update(accuracy(student, frames) if frames else {})
        rows.append(row)
        if backend.suffix == ".engine" and slowdown(found) > SLOWDOWN:
            notices.append(f"{precision} became {slowdown(found):.0%} slower during the run: is the board throttled?")
    table = {
        "title": f"Table III: student, {backend.name}, {backend.device}",
        "notice": "; ".join(notice for notice in notices if notice) or None,
        "rows": rows,
        "board": board_state(),
        "shared_memory": Path("/etc/nv_tegra_release").is_file(),
        "min_seconds": floors.seconds,
        "min_inferences": floors.inferences,
        "warmup_seconds": floors.warmup_seconds,
        "frames": len(frames["rgb"]) if frames else 0,
        "evaluated_depth_range": frames["evaluated_depth_range"] if frames else None,
    }
    return table, samples


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one line on a wrong flag."""

    def error(self, message: str) -> NoReturn:
        """End the script with the message."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")


def count(text: str) -> int:
    """Argparse type: an integer of 0 or more."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value


def seconds(text: str) -> float:
    """Argparse type: a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def parse_arguments() -> argparse.Namespace:
    """The flags of the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines"), help="default: %(default)s")
    parser.add_argument("--build", action="store_true", help="build the engines from the .onnx files first")
    parser.add_argument(
        "--iterations", type=count, default=1024, help="least timed inferences of a precision (default: %(default)s)"
    )
    parser.add_argument(
        "--min-seconds",
        type=seconds,
        default=10.0,
        help="least time that a precision is measured for; 60 is MLPerf's rule (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup-seconds", type=seconds, default=2.0, help="inferences before, for so long (default: %(default)s)"
    )
    parser.add_argument("--threads", type=count, default=0, help="of ONNX Runtime (default: 0, its own choice)")
    parser.add_argument("--compare", type=Path, help="an earlier table_3.json to tell the changes since")
    arguments = parser.parse_args()
    if not arguments.iterations:
        parser.error("--iterations must be 1 or more")
    return arguments


def stop_on_signals() -> None:
    """Have SIGTERM and SIGHUP end the script as Ctrl-C does, unless nohup has it ignore them."""

    def interrupt(number: int, frame: Optional[FrameType]) -> None:
        raise KeyboardInterrupt

    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:
            signal.signal(name, interrupt)


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    stop_on_signals()
    try:
        earlier = read_table(arguments.compare) if arguments.compare else None
        backend = find_backend(arguments.threads)
        if arguments.build:
            build_engines(arguments.engine_dir, backend)
        floors = Floors(arguments.min_seconds, arguments.iterations, arguments.warmup_seconds)
        table, samples = benchmark(arguments.engine_dir, backend, floors)
        text = as_markdown(table) + (comparison(table, earlier) if earlier else "")
        contents = {"md": text, "json": json.dumps(table, indent=2, allow_nan=False) + "\n", "csv": as_csv(table)}
        for suffix, content in contents.items():
            write_file(arguments.engine_dir / f"table_3.{suffix}", content.encode("utf-8"))
        drawn = draw_latencies(samples, arguments.engine_dir / "latency.png")
    except (BenchmarkError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped by a signal; no table was written", file=sys.stderr)
        return EXIT_STOPPED
    print(text)
    if drawn:
        print(f"latencies: {arguments.engine_dir / 'latency.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
