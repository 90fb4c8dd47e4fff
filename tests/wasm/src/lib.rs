//! Tests of the library in a browser, under `tests/`. `tests/wasm/run` runs them.
