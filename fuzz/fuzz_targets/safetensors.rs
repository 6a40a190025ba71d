//! A safetensors file of any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_checkpoint::safetensors::read_header;

fuzz_target!(|bytes: &[u8]| {
    for tensor in read_header("fuzz.safetensors".as_ref(), bytes).unwrap_or_default() {
        assert!(tensor.bytes.end <= bytes.len());
    }
});
