//! Every block format against the reference decoder of the `gguf` package (tests/fixtures/quantized-blocks.safetensors).

use octet_checkpoint::ElementType;
use octet_kernels::blocks::dequantize_row;
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture() -> Vec<u8> {
    let folder = std::env::var("OCTET_FIXTURES")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures").to_owned());
    std::fs::read(format!("{folder}/quantized-blocks.safetensors")).expect("the reference blocks")
}

#[test]
fn every_type_decodes_to_the_reference_values_bit_for_bit() {
    let file = fixture();
    let file = SafeTensors::deserialize(&file).expect("a safetensors file");
    for kind in ElementType::all().filter(|&kind| kind != ElementType::F32) {
        let blocks = file.tensor(&format!("{kind}.blocks")).expect("blocks");
        let values = file.tensor(&format!("{kind}.values")).expect("values");
        let cols = values.shape()[1];
        let rows = blocks.data().chunks_exact(blocks.shape()[1]);
        for (r, (bytes, expected)) in rows.zip(values.data().chunks_exact(4 * cols)).enumerate() {
            let mut out = vec![0.0; cols];
            dequantize_row(kind, bytes, &mut out);
            for (i, (x, e)) in out.iter().zip(expected.as_chunks::<4>().0).enumerate() {
                let e = f32::from_le_bytes(*e);
                assert_eq!(x.to_bits(), e.to_bits(), "{kind} row {r} weight {i}: {x}, and the reference says {e}");
            }
        }
    }
}

#[test]
fn plain_floats_keep_their_bits() {
    let values = [0.0f32, -0.0, 1.5, f32::MIN_POSITIVE / 4.0, f32::MAX, f32::NEG_INFINITY, f32::NAN];
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = [0.0; 7];
    dequantize_row(ElementType::F32, &bytes, &mut out);
    assert_eq!(out.map(f32::to_bits), values.map(f32::to_bits));
}

proptest! {
    /// Scales that are NaN or infinite included: whatever a file holds, decoding it must not panic.
    #[test]
    fn any_bytes_decode(
        kind in prop::sample::select(ElementType::all().collect::<Vec<_>>()),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0x7c), Just(0)], 2 * 256 * 4),
    ) {
        let mut out = vec![0.0; 512];
        let len = kind.row_bytes(512).expect("two whole blocks");
        dequantize_row(kind, &bytes[..len], &mut out);
    }
}
