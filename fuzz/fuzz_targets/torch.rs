//! A torch file of any bytes: the zip archive and the pickle in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_checkpoint::torch;

fuzz_target!(|bytes: &[u8]| {
    for tensor in torch::read_tensors("fuzz.pth".as_ref(), bytes).unwrap_or_default() {
        assert!(tensor.bytes.end <= bytes.len());
    }
    // Also as a bare pickle, whose mutations need not keep an archive in order.
    for tensor in torch::read_pickle("fuzz.pkl".as_ref(), bytes).unwrap_or_default() {
        assert!(tensor.elements().is_some());
    }
});
