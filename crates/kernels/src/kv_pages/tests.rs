use super::*;
use crate::{Rope, RopeAngles, ThreadPool};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0).collect()
}

/// A key or value as it is read back: by the layout's description, element by element.
fn read(kv: &KvPages, layer: usize, head: usize, page: u32, slot: usize) -> (Vec<f32>, Vec<f32>) {
    let (keys, values) = kv.group(layer, head, page, slot / GROUP_TOKENS);
    let slot = slot % GROUP_TOKENS;
    let f32_at = |bytes: &[u8], i: usize| f32::from_ne_bytes(bytes[4 * i..][..4].try_into().unwrap());
    let f16_at = |bytes: &[u8], i: usize| half::f16::from_ne_bytes(bytes[2 * i..][..2].try_into().unwrap()).to_f32();
    let key_index = |d: usize| d * 16 + slot;
    let value_index = |d: usize| (d / 16) * 256 + slot * 16 + d % 16;
    let q8_at = |bytes: &[u8], d: usize, index: usize| {
        let block = &bytes[d / 32 * 544..];
        f16_at(block, slot) * block[32 + index] as i8 as f32
    };
    let key = |d: usize| match kv.kind() {
        KvType::F32 => f32_at(keys, key_index(d)),
        KvType::F16 => f16_at(keys, key_index(d)),
        KvType::Q8_0 => q8_at(keys, d, d % 32 / 2 * 32 + slot * 2 + d % 2),
    };
    let value = |d: usize| match kv.kind() {
        KvType::F32 => f32_at(values, value_index(d)),
        KvType::F16 => f16_at(values, value_index(d)),
        KvType::Q8_0 => q8_at(values, d, d % 32 / 16 * 256 + slot / 2 * 32 + d % 16 * 2 + slot % 2),
    };
    let head_dim = kv.layout().head_dim;
    ((0..head_dim).map(key).collect(), (0..head_dim).map(value).collect())
}

/// How far a stored number may be from `x`, of a row whose largest is `largest`.
fn tolerance(kind: KvType, x: f32, largest: f32) -> f32 {
    match kind {
        KvType::F32 => 0.0,
        KvType::F16 => x.abs() / 2048.0,
        // Half a step, and the rounding of the scale.
        KvType::Q8_0 => largest / 127.0 * 0.5 + largest / 2048.0,
    }
}

#[test]
fn tokens_come_back_as_they_were_within_their_type() {
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        for head_dim in [2, 12, 16, 40, 64, 128] {
            let (n_layers, n_kv_heads, page_tokens) = (2, 3, 32);
            let mut kv = KvPages::new(kind, n_layers, n_kv_heads, head_dim, page_tokens, 2).unwrap();
            let row = |layer: usize, page: usize, slot: usize| {
                let seed = (layer * 2 + page) * page_tokens + slot;
                (numbers(n_kv_heads * head_dim, seed), numbers(n_kv_heads * head_dim, seed + 1000))
            };
            let places =
                || (0..n_layers).flat_map(|l| (0..2).flat_map(move |p| (0..page_tokens).map(move |s| (l, p, s))));
            for (layer, page, slot) in places() {
                let (k, v) = row(layer, page, slot);
                kv.append(layer, page as u32, slot, &k, &v);
            }
            for (layer, page, slot) in places() {
                let (k, v) = row(layer, page, slot);
                for head in 0..n_kv_heads {
                    let got = read(&kv, layer, head, page as u32, slot);
                    for (want, got) in [(&k, got.0), (&v, got.1)] {
                        for (want, got) in want[head * head_dim..][..head_dim].iter().zip(got) {
                            assert!(
                                (want - got).abs() <= tolerance(kind, *want, 2.0),
                                "{kind:?} {head_dim}: {want} {got}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn many_sequences_at_once_are_the_same_as_one_by_one() {
    let pool = ThreadPool::new(2);
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let (heads, dim) = (3, 40);
        let new = || KvPages::new(kind, 2, heads, dim, 16, 8).unwrap();
        let (mut together, mut alone) = (new(), new());
        let sequences = [
            Queries { pages: &[5, 0, 3], first_position: 13, n_tokens: 30 },
            Queries { pages: &[7], first_position: 0, n_tokens: 1 },
            Queries { pages: &[2, 4], first_position: 16, n_tokens: 2 },
        ];
        let (q, k, v) = (numbers(33 * 5 * dim, 3), numbers(33 * heads * dim, 1), numbers(33 * heads * dim, 2));
        let positions: Vec<usize> =
            sequences.iter().flat_map(|s| s.first_position..s.first_position + s.n_tokens).collect();
        let mut angles = RopeAngles::default();
        Rope::new(dim, 1e4).angles(&positions, &mut angles);
        let mut turned = q.clone();
        let new = Projections { angles: &angles, q: &mut turned, k: &k, v: &v };
        together.append_turned(&pool, 1, sequences.into_iter(), new);
        let rows = k.chunks(heads * dim).zip(v.chunks(heads * dim)).zip(q.chunks(5 * dim)).zip(turned.chunks(5 * dim));
        let mut rows = rows.enumerate();
        for sequence in sequences {
            for position in sequence.first_position..sequence.first_position + sequence.n_tokens {
                let (token, (((k, v), q), turned)) = rows.next().unwrap();
                let [mut k, mut q] = [k, q].map(<[f32]>::to_vec);
                [&mut k, &mut q].into_iter().for_each(|x| angles.apply_to_token(token, x));
                alone.append(1, sequence.pages[position / 16], position % 16, &k, v);
                assert_eq!(q, turned);
            }
        }
        assert!((0..8).all(|page| together.page(page) == alone.page(page)));
        assert!(together.page(5).iter().any(|&b| b != 0) && together.page(1).iter().all(|&b| b == 0));
    }
}

#[test]
fn a_pass_of_no_token_stores_nothing() {
    let mut kv = KvPages::new(KvType::F16, 1, 2, 64, 16, 1).unwrap();
    let new = Projections { angles: &RopeAngles::default(), q: &mut [], k: &[], v: &[] };
    kv.append_turned(&ThreadPool::new(2), 0, std::iter::empty(), new);
    assert!(kv.page(0).iter().all(|&byte| byte == 0));
}

#[test]
fn pages_are_copied_and_exchanged_as_bytes() {
    let mut kv = KvPages::new(KvType::F16, 2, 1, 16, 16, 3).unwrap();
    kv.append(1, 0, 7, &numbers(16, 3), &numbers(16, 4));
    kv.copy_page(0, 2);
    assert_eq!(kv.page(0), kv.page(2));
    let mut other = KvPages::new(KvType::F16, 2, 1, 16, 16, 1).unwrap();
    assert_eq!(kv.format(), other.format());
    other.write_page(0, kv.page(2));
    assert_eq!(read(&other, 1, 0, 0, 7), read(&kv, 1, 0, 0, 7));
    let sizes = KvPages::new(KvType::F16, 2, 1, 32, 16, 1).unwrap();
    assert_ne!(kv.format(), sizes.format());
}

/// Mixtral: 32 layers, 8 heads of 128. 128 KiB a token in f16; in q8_0 34 bytes for every 64.
#[test]
fn bytes_per_token() {
    let bytes = |kind| KvPages::new(kind, 32, 8, 128, 64, 0).unwrap().bytes_per_token();
    assert_eq!([bytes(KvType::F32), bytes(KvType::F16), bytes(KvType::Q8_0)], [256 << 10, 128 << 10, 68 << 10]);
}

#[test]
fn hopeless_sizes_are_errors() {
    for (page_tokens, head_dim) in [(0, 16), (8, 16), (24, 16), (16, 0), (16, 3)] {
        let result = KvPages::new(KvType::F16, 1, 1, head_dim, page_tokens, 1);
        assert!(matches!(result, Err(Error::KvShape { .. })), "{page_tokens} {head_dim}");
    }
    for n_pages in [usize::MAX, usize::MAX / 70_000, 1 << 36] {
        let error = KvPages::new(KvType::F16, 32, 8, 128, 64, n_pages).err().unwrap();
        assert!(error.to_string().contains("fewer tokens"), "{error}");
    }
    assert!(matches!(KvPages::new(KvType::F32, usize::MAX, 8, 128, 64, 1), Err(Error::KvMemory { bytes: None, .. })));
}

/// Of 4 GiB only the first bytes written are taken.
#[cfg(target_os = "linux")]
#[test]
fn untouched_pages_are_not_resident() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let Ok(mut kv) = KvPages::new(KvType::F16, 32, 8, 128, 64, 512) else {
        return println!("skipped: the system does not promise 4 GiB");
    };
    kv.append(0, 511, 0, &numbers(1024, 1), &numbers(1024, 2));
    assert!(resident() < before + (256 << 20), "4 GiB promised, {} taken", resident() - before);
}

#[test]
fn hostile_numbers_are_stored_without_panic() {
    let row = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, -1e-45, 0.0, 65504.0, -1.0];
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let mut kv = KvPages::new(kind, 1, 1, 8, 16, 1).unwrap();
        kv.append(0, 0, 3, &row, &row);
        kv.append(0, 0, 4, &[1e-45; 8], &[0.0; 8]);
        assert_eq!(read(&kv, 0, 0, 0, 4).1, [0.0; 8]);
    }
}

#[test]
fn names_of_types() {
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        assert_eq!(KvType::from_name(kind.name()), Some(kind));
    }
    assert_eq!(KvType::from_name("q4_0"), None);
}

/// Whatever has been committed, what was written stays, and it comes to an end.
#[test]
fn committing_changes_nothing() {
    let mut kv = KvPages::new(KvType::F32, 1, 2, 64, 16, 200).unwrap();
    let written: Vec<u8> = (0..kv.page(150).len()).map(|i| i as u8).collect();
    kv.write_page(150, &written);
    let bytes = 200 * written.len();
    let steps = (0..).take_while(|_| kv.commit_some()).count();
    assert!(steps <= bytes.div_ceil(COMMIT_BYTES), "{steps} for {bytes} bytes");
    assert!(!kv.commit_some());
    assert_eq!(kv.page(150), written);
    assert!(kv.page(199).iter().all(|&byte| byte == 0));
}
