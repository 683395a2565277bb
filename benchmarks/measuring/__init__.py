"""One case measured: processes, inputs, gate, times."""
