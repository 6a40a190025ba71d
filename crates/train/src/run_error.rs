//! What can go wrong in a run, in one line that names the way out.

use std::path::PathBuf;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A loss or gradient is no number. Nothing was changed by the step.
    #[error(
        "{what} of step {step} is {value}; its samples are {samples}. Nothing of this step was kept; lower --rate, or look at these samples"
    )]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// The step, from 1.
        step: u64,
        /// What it is.
        value: f64,
        /// Where the samples of the step, or of the pass if it is known, stand.
        samples: String,
    },
    /// A snapshot cannot be written.
    #[error("{}: cannot write the snapshot of step {step}: {source}; the one before is whole", path.display())]
    Snapshot {
        /// The folder of snapshots.
        path: PathBuf,
        /// Its step.
        step: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A snapshot cannot be read, or is of another run.
    #[error("{0}")]
    Resume(String),
    /// The model refuses a batch.
    #[error("{0}")]
    Model(String),
    /// A result cannot be written.
    #[error("{0}")]
    Output(String),
}
