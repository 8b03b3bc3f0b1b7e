"""Weights as plain files, for programs that load no ONNX: text, bytes with offsets, NumPy's npz, a C header; and their reader."""
