//! Numbers in, numbers out: block formats, matrix products, attention, and the threads they run on.
//!
//! Nothing here knows a file, a model or a token: functions take slices and sizes. See ARCHITECTURE.md.

mod activations;
mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_floats;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_activations;
#[cfg(target_arch = "x86_64")]
mod avx2_floats;
#[cfg(target_arch = "x86_64")]
mod avx2_integers;
#[cfg(target_arch = "x86_64")]
mod avx2_k_formats;
#[cfg(target_arch = "x86_64")]
mod avx2_quads;
#[cfg(target_arch = "x86_64")]
mod avx2_small_formats;
#[cfg(target_arch = "x86_64")]
mod avx2_steps;
#[cfg(target_arch = "x86_64")]
mod avx512_activations;
#[cfg(target_arch = "x86_64")]
mod avx512_integers;
pub mod blocks;
pub mod cpu;
mod dense_codes;
mod error;
mod exp;
mod experts;
#[cfg(test)]
mod experts_tests;
mod float_matmul;
pub mod gradients;
mod interleave;
mod kv_pages;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_avx2;
#[cfg(target_arch = "x86_64")]
mod lanes_avx512;
#[cfg(target_arch = "aarch64")]
mod lanes_neon;
mod lanes_pair;
mod lanes_portable;
pub mod limits;
mod low_rank;
mod matmul;
#[cfg(test)]
mod matmul_tests;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_formats;
#[cfg(target_arch = "aarch64")]
mod neon_integers;
mod packed;
mod packed_layout;
mod portable;
mod portable_tiles;
mod portions;
#[cfg(target_arch = "x86_64")]
mod quads;
pub mod quantize;
mod residual;
mod rms_norm;
mod rope;
mod shared_slice;
mod softmax;
mod sums;
mod swiglu;
mod thread_pool;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod tile_walk;

pub use activations::{Activations, Reads};
pub use attention::{AttentionLayer, AttentionScratch, attention};
pub use error::Error;
pub use experts::{Expert, ExpertChange, ExpertScratch, ExpertsChange, Routes, experts};
pub use float_matmul::{FloatMatrix, FloatMatrixMut, Target, float_matmul, multiplies_bf16};
pub use kv_pages::{KvPages, KvType, Projections, Queries};
pub use low_rank::{Changed, LowRank, add_low_rank};
pub use matmul::{Product, matmul};
pub use packed::{PackedMatrix, RowSource, Unsettled};
pub use residual::Residual;
pub use rms_norm::rms_norm;
pub use rope::{Rope, RopeAngles};
pub use softmax::softmax;
pub use swiglu::{add_assign, swiglu};
pub use thread_pool::ThreadPool;
