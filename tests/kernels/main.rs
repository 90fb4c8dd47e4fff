//! Tests of the shaders: their structs, the compilation of every kernel, and its translation for other platforms.

mod shaders_compile;
mod translate;
