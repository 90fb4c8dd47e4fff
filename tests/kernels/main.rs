//! Promises of the shaders: their structs, that every kernel compiles, and that it can be translated for other platforms.

mod shaders_compile;
mod translate;
