"""TensorRT 8.6, 10 and 11 on NVIDIA GPUs. Importing any module of this package needs neither TensorRT nor CUDA."""
