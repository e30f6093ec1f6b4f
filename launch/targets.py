"""Devices that programs can be compiled for where they are not present, and their peaks.

A GPU is described to XLA by the figures that its driver reports; a TPU by its name, which libtpu knows.
"""

from typing import Any, NamedTuple

from jax.experimental import topologies

# NVIDIA's figures for the H100 SXM (Hopper tuning guide, and what `cudaGetDeviceProperties` reports), in the text form
# of XLA's GpuTargetConfigProto.
_H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
"""


class Target(NamedTuple):
    """A device: what it is called, its memory in bytes, its bandwidth in bytes a second, its peaks in FLOP a second.

    kind: gpu | tpu. name: of a TPU's topology, or the description of a GPU. options: the compiler's.
    bfloat16, float32, highest: peaks of products with bfloat16 factors, of shortened float32 ones (TF32; three bfloat16
      passes on a TPU), and of float32 ones.
    """

    kind: str
    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    highest: float
    options: dict[str, str] | None = None

    def peak(self, products: str) -> float:
        """FLOP a second of a kind of products, as `hlo.cost` names them."""
        if "f32" not in products:
            return self.bfloat16
        return self.highest if "highest" in products else self.float32

    def devices(self, count: int) -> list[Any]:
        """The first `count` devices of a topology.

        Raises:
          RuntimeError: if jax lacks the plug-in for this platform.
        """
        if self.kind == "gpu":
            found = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{count}", target_config=self.name)
        else:
            bounds = {"chips_per_host_bounds": (1, 1, 1)} if self.name.endswith(":1x1") else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **bounds)
        return found.devices[:count]


# XLA's default level takes minutes a program for a TPU; the lowest is enough for types, operations and memory.
_FAST = {"optimization_level": "O0"}
# H100: product rates measured on one card (another one gave 654 and 342 for bfloat16 and TF32). TPUs: the published
# peaks of bfloat16; a float32 product is three passes, or six at the highest precision.
TARGETS = {
    "h100": Target("gpu", _H100, 80e9, 3.35e12, 792e12, 405e12, 52e12),
    "v4": Target("tpu", "v4:2x2x1", 32e9, 1.228e12, 275e12, 92e12, 46e12, _FAST),
    "v5e": Target("tpu", "v5e:2x2", 16e9, 0.819e12, 197e12, 66e12, 33e12, _FAST),
    "v5p": Target("tpu", "v5p:2x2x1", 95e9, 2.765e12, 459e12, 153e12, 76e12, _FAST),
    "v6e": Target("tpu", "v6e:2x2", 32e9, 1.64e12, 918e12, 306e12, 153e12, _FAST),
}
