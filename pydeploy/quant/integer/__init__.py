"""What a processor without floating point computes of a Q/DQ file: fixed-point factors, layers with integers, an interpreter."""
