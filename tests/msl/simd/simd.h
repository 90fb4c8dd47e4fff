// What Metal's <simd/simd.h> declares, <metal_stdlib> beside it has already.
