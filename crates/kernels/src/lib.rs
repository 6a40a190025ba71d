//! Numbers in, numbers out: block formats, matrix products, attention, and the threads they run on.
//!
//! Nothing here knows a file, a model or a token: functions take slices and sizes. See ARCHITECTURE.md.

pub mod blocks;
pub mod limits;
mod thread_pool;
mod attention;
mod error;
mod exp;
mod kv_pages;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_avx2;
mod rms_norm;
mod rope;
mod softmax;
mod swiglu;
mod shared_slice;

pub use attention::{AttentionLayer, AttentionScratch, attention};
pub use error::Error;
pub use kv_pages::{KvPages, KvType, Queries};
pub use rms_norm::rms_norm;
pub use rope::{Rope, RopeAngles};
pub use softmax::softmax;
pub use swiglu::{add_assign, swiglu};
pub use thread_pool::ThreadPool;
