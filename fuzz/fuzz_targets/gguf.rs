//! A GGUF of any bytes: its header, and all that a checkpoint makes of it, down to the rows of its tensors.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use octet_checkpoint::{Checkpoint, gguf};

/// Most bytes of rows that one run reads: enough for any tensor of the seeds.
const MAX_READ_BYTES: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = gguf::read_header("fuzz.gguf".as_ref(), bytes) else { return };
    for tensor in header.tensors() {
        assert!(tensor.bytes.end <= bytes.len());
    }
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let Ok((checkpoint, _problems)) = Checkpoint::examine(file.path()) else { return };
    let names: Vec<_> = checkpoint.params().tensors().take(1000).collect();
    for tensor in names.into_iter().filter_map(|name| checkpoint.find(name)) {
        let size = tensor.rows() * tensor.row_bytes();
        if size <= MAX_READ_BYTES {
            tensor.read_rows(0..tensor.rows(), &mut vec![0; size]);
        }
    }
});
