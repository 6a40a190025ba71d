//! Numbers in, numbers out: block formats, matrix products, attention, and the threads they run on.
//!
//! Nothing here knows a file, a model or a token: functions take slices and sizes. See ARCHITECTURE.md.

pub mod blocks;
