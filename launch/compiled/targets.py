"""Devices to compile for without having one, and their peaks.

XLA takes a GPU as the properties that its driver reports, and a TPU by name, which libtpu knows.
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
_TORUS_2D, _TORUS_3D = ("2x2", "2x4", "4x4"), ("2x2x1", "2x2x2", "2x2x4")


class Target(NamedTuple):
    """A device, its figures, and its description for XLA.

    Attributes:
      kind: "gpu" or "tpu".
      name: the GPU's description, or the TPU's generation.
      memory: bytes.
      bandwidth: bytes a second.
      bfloat16: peak FLOP a second of products with bfloat16 factors.
      float32: the peak with float32 factors that are shortened (TF32; three bfloat16 passes on a TPU).
      highest: the peak with float32 factors at `highest`.
      slices: shapes of a TPU slice, smallest first.
    """

    kind: str
    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    highest: float
    slices: tuple[str, ...] = ()

    def peak(self, products: str) -> float:
        """Return the peak FLOP a second of products, described as `hlo.cost` does."""
        if "f32" not in products:
            return self.bfloat16
        if "highest" in products:
            return self.highest
        one_pass = self.kind == "tpu" and "high" not in products  # a TPU's default rounds float32 factors to bfloat16
        return self.bfloat16 if one_pass else self.float32

    def devices(self, count: int) -> list[Any]:
        """Return `count` devices of the smallest topology that has as many.

        Raises:
          ValueError: if no topology is large enough.
          RuntimeError, NotImplementedError: if JAX's plugin for the platform is not installed.
        """
        if self.kind == "gpu":
            shape = {"platform": "cuda", "topology": f"1x1x{count}", "target_config": self.name}
            return topologies.get_topology_desc(**shape).devices
        for each in self.slices:
            found = topologies.get_topology_desc(platform="tpu", topology_name=f"{self.name}:{each}").devices
            if len(found) >= count:
                return found[:count]
        raise ValueError(f"--devices={count}: the largest {self.name} slice here has {len(found)} devices")


# H100: product rates measured on one card (another one gave 654 and 342 for bfloat16 and TF32). TPUs: the published
# bfloat16 peaks; a float32 product is three passes, or six at `highest`. v4: one device is one of a chip's two cores.
TARGETS = {
    "h100": Target("gpu", _H100, 80e9, 3.35e12, 792e12, 405e12, 52e12),
    "v4": Target("tpu", "v4", 16e9, 0.614e12, 137.5e12, 46e12, 23e12, _TORUS_3D),
    "v5e": Target("tpu", "v5e", 16e9, 0.819e12, 197e12, 66e12, 33e12, _TORUS_2D),
    "v5p": Target("tpu", "v5p", 95e9, 2.765e12, 459e12, 153e12, 76e12, _TORUS_3D),
    "v6e": Target("tpu", "v6e", 32e9, 1.64e12, 918e12, 306e12, 153e12, _TORUS_2D),
}
