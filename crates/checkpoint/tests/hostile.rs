//! Any bytes at all: no parser panics, none takes more memory than the file could fill, and what opens can be read.
//!
//! Valid files are cut at every offset of their headers, overwritten, zeroed and shuffled; random bytes are tried
//! too. The allocator of this test counts what each thread holds.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use octet_checkpoint::{Checkpoint, Params, gguf, safetensors, torch};
use proptest::prelude::*;
use support::{Experts, fixture, to_gguf};

/// The system's allocator, with a count of each thread's bytes and their peak.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes on to the system's allocator unchanged; the counters are thread-local cells that need
// neither allocation nor destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get().wrapping_add(layout.size()));
        PEAK.set(PEAK.get().max(HELD.get()));
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a parser may hold for each byte of the file: a list of empty strings takes 24 for each 8 of the file,
/// doubled while it grows, and names are kept twice; one digit and comma of JSON become 8 bytes of a shape, and a
/// byte of pickle a value of some 100.
const BYTES_PER_BYTE: usize = 256;
/// What it may hold beside.
const BYTES_BESIDE: usize = 64 << 10;

/// Runs a parser and asserts that it stays within the memory that `len` bytes of input justify.
#[track_caller]
fn bounded<R>(len: usize, parse: impl FnOnce() -> R) -> R {
    let before = HELD.get();
    PEAK.set(before);
    let result = parse();
    let held = PEAK.get() - before;
    assert!(held <= BYTES_BESIDE + BYTES_PER_BYTE * len, "{held} bytes for a file of {len}");
    result
}

fn parse_gguf(bytes: &[u8]) {
    if let Ok(header) = bounded(bytes.len(), || gguf::read_header("m.gguf".as_ref(), bytes)) {
        assert!(header.tensors().iter().all(|tensor| tensor.bytes.end <= bytes.len()));
    }
}

fn parse_safetensors(bytes: &[u8]) {
    if let Ok(tensors) = bounded(bytes.len(), || safetensors::read_header("m.safetensors".as_ref(), bytes)) {
        assert!(tensors.iter().all(|tensor| tensor.bytes.end <= bytes.len()));
    }
}

fn parse_torch(bytes: &[u8]) {
    if let Ok(tensors) = bounded(bytes.len(), || torch::read_tensors("m.pth".as_ref(), bytes)) {
        assert!(tensors.iter().all(|tensor| tensor.bytes.end <= bytes.len()));
    }
}

fn parse_pickle(bytes: &[u8]) {
    let _ = bounded(bytes.len(), || torch::read_pickle("m.pkl".as_ref(), bytes));
}

fn parse_params(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(params) = bounded(text.len(), || Params::from_json("config.json".as_ref(), &text)) {
        assert!(params.n_active_parameters() <= params.n_parameters());
    }
}

/// Opens a checkpoint and reads every tensor that it finds.
fn open_and_read(path: &Path) {
    let Ok((checkpoint, _)) = Checkpoint::examine(path) else { return };
    let names: Vec<_> = checkpoint.params().tensors().take(10_000).collect();
    for tensor in names.into_iter().filter_map(|name| checkpoint.find(name)) {
        support::bytes(&tensor);
    }
}

static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut file = to_gguf(&Checkpoint::open(&fixture("mixtral-4x3")).unwrap(), Experts::Merged);
    // The first tensors are enough, and keep the file small.
    file.tensors.truncate(8);
    file.bytes()
});
static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(fixture("llama-dense/model.safetensors")).unwrap());
static TORCH: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(fixture("mixtral-4x3/mistral-raw/stacked/consolidated.00.pth")).unwrap());
static CONFIG: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(fixture("mixtral-window/config.json")).unwrap());
static PARAMS: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(fixture("mixtral-4x3/mistral-raw/stacked/params.json")).unwrap());

/// The pickle within the torch file.
fn pickle() -> &'static [u8] {
    let at =
        |needle: &[u8], from: usize| from + (TORCH[from..].windows(needle.len()).position(|w| w == needle)).unwrap();
    let start = at(b"\x80\x02}q\x00", 0);
    &TORCH[start..at(b"PK", start)]
}

/// What happens to a file on its way: cut, overwritten in places, zeroed, or parts exchanged.
#[derive(Clone, Debug)]
enum Damage {
    Cut(prop::sample::Index),
    Overwrite(Vec<(prop::sample::Index, u8)>),
    Number(prop::sample::Index, u64),
    Zero(prop::sample::Index, usize),
    Exchange(prop::sample::Index, prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    let number =
        prop_oneof![Just(0), Just(u64::MAX), Just(i64::MAX as u64), Just(1 << 32), Just(1 << 60), any::<u64>()];
    prop_oneof![
        index().prop_map(Damage::Cut),
        prop::collection::vec((index(), any::<u8>()), 1..8).prop_map(Damage::Overwrite),
        (index(), number).prop_map(|(at, number)| Damage::Number(at, number)),
        (index(), 1..500usize).prop_map(|(at, len)| Damage::Zero(at, len)),
        (index(), index(), 1..200usize).prop_map(|(a, b, len)| Damage::Exchange(a, b, len)),
    ]
}

/// The damaged file; blows fall on `target`, the part of the file where its structure is.
fn damaged(file: &[u8], target: std::ops::Range<usize>, damage: &Damage) -> Vec<u8> {
    let mut out = file.to_vec();
    let at = |index: &prop::sample::Index| target.start + index.index(target.len());
    match damage {
        Damage::Cut(index) => out.truncate(index.index(file.len())),
        Damage::Overwrite(bytes) => bytes.iter().for_each(|(index, byte)| out[at(index)] = *byte),
        Damage::Number(index, number) => {
            let bytes = number.to_le_bytes();
            out.iter_mut().skip(at(index)).zip(bytes).for_each(|(out, byte)| *out = byte);
        }
        Damage::Zero(index, len) => out.iter_mut().skip(at(index)).take(*len).for_each(|byte| *byte = 0),
        Damage::Exchange(a, b, len) => {
            (0..*len).for_each(|i| {
                let (a, b) = (at(a) + i, at(b) + i);
                if a.max(b) < out.len() {
                    out.swap(a, b);
                }
            });
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in 0..3usize) {
        let prefixes: [&[u8]; 3] = [b"", b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", b"\x80\x02}("];
        bytes.splice(0..0, prefixes[magic].iter().copied());
        parse_gguf(&bytes);
        parse_safetensors(&bytes);
        parse_torch(&bytes);
        parse_pickle(&bytes);
        parse_params(&bytes);
    }

    #[test]
    fn a_damaged_gguf(damage in damage()) {
        let header = GGUF.len().min(9000);
        parse_gguf(&damaged(&GGUF, 0..header, &damage));
    }

    #[test]
    fn a_damaged_safetensors(damage in damage()) {
        parse_safetensors(&damaged(&SAFETENSORS, 0..2200, &damage));
    }

    #[test]
    fn a_damaged_torch_file(damage in damage()) {
        let directory = TORCH.len() - 3500..TORCH.len();
        parse_torch(&damaged(&TORCH, 0..3400, &damage));
        parse_torch(&damaged(&TORCH, directory, &damage));
        parse_pickle(&damaged(pickle(), 0..pickle().len(), &damage));
    }

    #[test]
    fn a_damaged_configuration(damage in damage()) {
        parse_params(&damaged(&CONFIG, 0..CONFIG.len(), &damage));
        parse_params(&damaged(&PARAMS, 0..PARAMS.len(), &damage));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_opens_can_be_read(damage in damage()) {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        put("m.gguf", &damaged(&GGUF, 0..GGUF.len().min(9000), &damage));
        open_and_read(&folder.path().join("m.gguf"));
        put("config.json", &fs::read(fixture("llama-dense/config.json")).unwrap());
        put("model.safetensors", &damaged(&SAFETENSORS, 0..2200, &damage));
        open_and_read(&folder.path().join("model.safetensors"));
        put("params.json", &damaged(&PARAMS, 0..PARAMS.len(), &damage));
        put("consolidated.00.pth", &TORCH);
        open_and_read(&folder.path().join("consolidated.00.pth"));
        put("params.json", &PARAMS);
        put("consolidated.00.pth", &damaged(&TORCH, 0..3400, &damage));
        open_and_read(&folder.path().join("consolidated.00.pth"));
    }
}

#[test]
fn the_files_open_before_they_are_damaged() {
    gguf::read_header("m.gguf".as_ref(), &GGUF).unwrap();
    safetensors::read_header("m.safetensors".as_ref(), &SAFETENSORS).unwrap();
    torch::read_tensors("m.pth".as_ref(), &TORCH).unwrap();
    torch::read_pickle("m.pkl".as_ref(), pickle()).unwrap();
    Params::from_json("config.json".as_ref(), str::from_utf8(&CONFIG).unwrap()).unwrap();
    Params::from_json("params.json".as_ref(), str::from_utf8(&PARAMS).unwrap()).unwrap();
}

#[test]
fn files_cut_at_every_offset_of_their_headers() {
    (0..GGUF.len().min(9000)).for_each(|len| parse_gguf(&GGUF[..len]));
    (0..2200).for_each(|len| parse_safetensors(&SAFETENSORS[..len]));
    (0..pickle().len()).for_each(|len| parse_pickle(&pickle()[..len]));
    // Each cut archive is searched for its end, so not all of them are tried.
    let ends = (0..TORCH.len()).step_by(2003).chain((TORCH.len() - 4000..TORCH.len()).step_by(11));
    ends.for_each(|len| parse_torch(&TORCH[..len]));
    (0..CONFIG.len()).for_each(|len| parse_params(&CONFIG[..len]));
}

/// A dictionary whose many tensors share one long name, or one long storage key, must not repeat it in memory.
#[test]
fn a_pickle_cannot_multiply_what_it_repeats() {
    let long = "k".repeat(10_000);
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    for (name, key) in [(long.as_str(), "0"), ("w", long.as_str())] {
        let mut program = b"\x80\x02}(".to_vec();
        program.extend(text(name));
        program.extend(b"q\x01ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nHalfStorage\n");
        program.extend(text(key));
        program.extend(b"X\x03\0\0\0cpuK\x06tQK\x02K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRq\x02");
        (0..50_000).for_each(|_| program.extend(b"h\x01h\x02"));
        program.extend(b"u.");
        parse_pickle(&program);
        assert!(torch::read_pickle("m.pkl".as_ref(), &program).is_err());
    }
}
