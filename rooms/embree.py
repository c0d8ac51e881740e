"""Embree's C functions, for kernels that Numba compiles: packets of 16 rays, without a Python call.

The package embreex brings the library. Its own Python interface copies a mesh number by number, and knows no packets.
"""

import ctypes
import weakref
from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
from embreex import rtcore_scene
from numba import types

PACKET = 16  # rays
COHERENT = np.array([1 << 16, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], np.int32)  # RTCOccludedArguments: rays of one beam
_ROBUST, _TRIANGLES, _INDEX, _VERTEX, _UINT3, _FLOAT3 = 4, 0, 0, 1, 0x5003, 0x9003  # constants of embree4/rtcore.h
_POINTER = types.uintp

# looked up by name in the library below, so that Numba can keep the compiled kernels on disk
llvmlite.binding.load_library_permanently(rtcore_scene.__file__)
_PACKET = types.void(_POINTER, _POINTER, _POINTER, _POINTER)  # valid rays, scene, rays, arguments
intersect_16: Any = types.ExternalFunction("rtcIntersect16", _PACKET)
occluded_16: Any = types.ExternalFunction("rtcOccluded16", _PACKET)
occluded: Any = types.ExternalFunction("rtcOccluded1", types.void(_POINTER, _POINTER, _POINTER))  # scene, ray, ...


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(rtcore_scene.__file__)  # finds the functions of the libraries it is linked with, too
    pointer, number, size = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t
    for name, result, arguments in (
        ("rtcNewDevice", pointer, [ctypes.c_char_p]),
        ("rtcGetDeviceError", ctypes.c_int, [pointer]),
        ("rtcNewScene", pointer, [pointer]),
        ("rtcSetSceneFlags", None, [pointer, number]),
        ("rtcNewGeometry", pointer, [pointer, number]),
        ("rtcSetSharedGeometryBuffer", None, [pointer, number, number, number, pointer, size, size, size]),
        ("rtcCommitGeometry", None, [pointer]),
        ("rtcAttachGeometry", number, [pointer, pointer]),
        ("rtcReleaseGeometry", None, [pointer]),
        ("rtcCommitScene", None, [pointer]),
        ("rtcReleaseScene", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _device() -> int:
    return _library().rtcNewDevice(b"threads=1")  # each worker process has one core


class EmbreeScene:
    """F triangles, float [F,3,3], as Embree's robust scene; `handle` is its address, for the kernels."""

    def __init__(self, vertices: np.ndarray):
        library, device = _library(), _device()
        count = len(vertices)
        self._corners = np.zeros((3 * count, 4), np.float32)  # Embree reads 16 bytes per corner
        self._corners[:, :3] = vertices.reshape(-1, 3)
        self._indices = np.arange(3 * count, dtype=np.uint32)
        geometry = library.rtcNewGeometry(device, _TRIANGLES)
        corners, indices = self._corners.ctypes.data, self._indices.ctypes.data
        library.rtcSetSharedGeometryBuffer(geometry, _VERTEX, 0, _FLOAT3, corners, 0, 16, 3 * count)
        library.rtcSetSharedGeometryBuffer(geometry, _INDEX, 0, _UINT3, indices, 0, 12, count)
        library.rtcCommitGeometry(geometry)
        self.handle: int = library.rtcNewScene(device)
        library.rtcSetSceneFlags(self.handle, _ROBUST)
        library.rtcAttachGeometry(self.handle, geometry)
        library.rtcReleaseGeometry(geometry)
        library.rtcCommitScene(self.handle)
        weakref.finalize(self, library.rtcReleaseScene, self.handle)
        if error := library.rtcGetDeviceError(device):
            raise RuntimeError(f"Embree could not build a scene of {count} triangles: error {error}")
