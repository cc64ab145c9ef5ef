"""Where KV lies that is not in the pool: colder, larger, slower places. Bytes in, bytes out; no torch."""
