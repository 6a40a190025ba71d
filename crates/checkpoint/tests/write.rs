//! What is written is read back, by our reader and by the reference's; a job is whole or absent.

use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use octet_checkpoint::gguf::{Array, File, Value};
use octet_checkpoint::write::{Event, Existing, Job, NewTensor, Plan, gguf, safetensors};
use octet_checkpoint::{ElementType, Error, StoredType};

const MIB: usize = 1 << 20;

/// A matrix whose bytes tell where they belong.
fn tensor(name: &str, element_type: ElementType, rows: u64, cols: u64, seed: usize) -> NewTensor<'static> {
    let row_bytes = element_type.row_bytes(cols as usize).unwrap();
    let fill = move |rows: Range<usize>, out: &mut [u8]| {
        for (row, bytes) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            bytes.copy_from_slice(&row_content(row, row_bytes, seed));
        }
        Ok(())
    };
    NewTensor::new(name.into(), element_type, vec![rows, cols], Box::new(fill))
}

fn row_content(row: usize, row_bytes: usize, seed: usize) -> Vec<u8> {
    (0..row_bytes).map(|i| (row * 31 + i * 7 + seed) as u8).collect()
}

fn content(rows: u64, row_bytes: usize, seed: usize) -> Vec<u8> {
    (0..rows as usize).flat_map(|row| row_content(row, row_bytes, seed)).collect()
}

fn job(out: &Path) -> Job {
    Job { out: out.to_owned(), existing: Existing::Refuse, threads: 2, made_from: vec!["a test".into()] }
}

fn run(out: &Path, plan: &Plan<'_>) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    job(out).run(plan, &mut |event| events.push(event))?;
    Ok(events)
}

/// A checkpoint of one small tensor.
fn folder_plan() -> Plan<'static> {
    let mut plan = safetensors::plan("model", vec![tensor("a", ElementType::F32, 2, 2, 0)], u64::MAX);
    plan.add_file("config.json", b"{}".to_vec());
    plan
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One value of each kind that the format has.
fn every_kind_of_value() -> Vec<(String, Value)> {
    let values = vec![
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("u64", Value::U64(1 << 63)),
        ("i64", Value::I64(-(1 << 62))),
        ("f32", Value::F32(1e-5)),
        ("f64", Value::F64(1e-300)),
        ("bool", Value::Bool(true)),
        ("text", Value::String("▁Hällo".into())),
        ("list.u8", Value::Array(Array::U8(vec![1, 2, 255]))),
        ("list.i8", Value::Array(Array::I8(vec![-1, 2]))),
        ("list.u16", Value::Array(Array::U16(vec![1, 65_535]))),
        ("list.i16", Value::Array(Array::I16(vec![-1]))),
        ("list.u32", Value::Array(Array::U32(vec![]))),
        ("list.i32", Value::Array(Array::I32(vec![-7, 8]))),
        ("list.u64", Value::Array(Array::U64(vec![1 << 60]))),
        ("list.i64", Value::Array(Array::I64(vec![-(1 << 60)]))),
        ("list.f32", Value::Array(Array::F32(vec![0.5, -1000.0]))),
        ("list.f64", Value::Array(Array::F64(vec![0.1]))),
        ("list.bool", Value::Array(Array::Bool(vec![true, false]))),
        ("list.text", Value::Array(Array::String(vec!["".into(), "<s>".into()]))),
    ];
    values.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

#[test]
fn a_gguf_of_every_kind_of_value_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    // 3 rows of 34 bytes end off the alignment, so the next tensor shows whether gaps are kept.
    let shapes = [("a", ElementType::Q8_0, 3, 32), ("b", ElementType::F32, 5, 7), ("c", ElementType::Q4_K, 2, 512)];
    let tensors = shapes.iter().enumerate().map(|(i, &(name, t, rows, cols))| tensor(name, t, rows, cols, i)).collect();
    run(&out, &gguf::plan(&every_kind_of_value(), tensors)).unwrap();

    let file = File::open(&out).unwrap();
    assert_eq!(file.version(), 3);
    let read: Vec<_> = file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    assert_eq!(read, every_kind_of_value());
    assert_eq!(file.tensors().len(), shapes.len());
    for (i, (stored, (name, element_type, rows, cols))) in file.tensors().iter().zip(shapes).enumerate() {
        assert_eq!((stored.name.as_str(), &stored.element_type), (name, &StoredType::Known(element_type)));
        assert_eq!(stored.shape, [rows, cols]);
        assert_eq!(stored.bytes.start % 32, 0);
        assert_eq!(file.bytes(stored), content(rows, element_type.row_bytes(cols as usize).unwrap(), i), "{name}");
    }
}

/// The reference reader refuses gaps, overlaps and wrong lengths; the shards and their index must agree.
#[test]
fn the_reference_reads_our_safetensors_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let shapes = [
        ("a", ElementType::BF16, 3, 5),
        ("b", ElementType::F32, 4, 9),
        ("c", ElementType::F16, 7, 2),
        ("d", ElementType::F32, 1, 1),
    ];
    let tensors = shapes.iter().enumerate().map(|(i, &(name, t, rows, cols))| tensor(name, t, rows, cols, i)).collect();
    let mut plan = safetensors::plan("model", tensors, 180);
    plan.add_file("config.json", b"{}".to_vec());
    let total = plan.bytes();
    run(&out, &plan).unwrap();

    let files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&out), files);
    assert_eq!(files.iter().map(|name| fs::metadata(out.join(name)).unwrap().len()).sum::<u64>(), total);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(out.join(files[3])).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 30 + 144 + 28 + 4);
    for (i, (name, element_type, rows, cols)) in shapes.into_iter().enumerate() {
        let bytes = fs::read(out.join(index["weight_map"][name].as_str().unwrap())).unwrap();
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = read.tensor(name).unwrap();
        assert_eq!(
            (view.shape(), view.dtype().to_string()),
            ([rows as usize, cols as usize].as_slice(), element_type.to_string())
        );
        assert_eq!(view.data(), content(rows, element_type.row_bytes(cols as usize).unwrap(), i), "{name}");
    }
}

#[test]
fn one_file_needs_no_index() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    run(&out, &safetensors::plan("consolidated", vec![tensor("a", ElementType::F32, 2, 2, 0)], u64::MAX)).unwrap();
    assert_eq!(names(&out), ["consolidated.safetensors"]);
}

/// What the source of [`large_plan`] does at its 21st tensor.
#[derive(Clone, Copy, PartialEq)]
enum At20 {
    GoOn,
    Fail,
    /// As good as a kill: nothing is tidied up.
    Panic,
}

/// 24 tensors of 1 MiB; each row read is counted.
fn large_plan(at_20: At20, rows_read: &AtomicUsize) -> Plan<'_> {
    let make = |i: usize| {
        let fill = move |rows: Range<usize>, out: &mut [u8]| {
            match at_20 {
                At20::Fail if i == 20 => {
                    return Err(Error::Malformed { path: "source".into(), problem: "is damaged".into() });
                }
                At20::Panic if i == 20 => panic!("killed"),
                _ => {}
            }
            rows_read.fetch_add(rows.len(), Ordering::Relaxed);
            for (row, bytes) in rows.zip(out.chunks_exact_mut(1024)) {
                bytes.copy_from_slice(&row_content(row, 1024, i));
            }
            Ok(())
        };
        NewTensor::new(format!("t.{i}"), ElementType::F32, vec![1024, 256], Box::new(fill))
    };
    gguf::plan(&[], (0..24).map(make).collect())
}

/// Runs the large plan and dies in the middle; returns what an undisturbed run writes.
fn die_in_the_middle(out: &Path) -> Vec<u8> {
    let rows_read = AtomicUsize::new(0);
    run(out, &large_plan(At20::GoOn, &rows_read)).unwrap();
    let whole = fs::read(out).unwrap();
    fs::remove_file(out).unwrap();
    // One thread, so that all before the 21st tensor is surely done.
    let job = Job { threads: 1, ..job(out) };
    let died = catch_unwind(AssertUnwindSafe(|| job.run(&large_plan(At20::Panic, &rows_read), &mut |_| {})));
    assert!(died.is_err());
    assert_eq!(names(out.parent().unwrap()), ["m.gguf.part", "m.gguf.part.journal"]);
    whole
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let whole = die_in_the_middle(&out);
    let rows_read = AtomicUsize::new(0);
    let events = run(&out, &large_plan(At20::GoOn, &rows_read)).unwrap();
    assert_eq!(events[0], Event::Begun { total: whole.len() as u64, kept: 20 * MIB as u64 });
    assert_eq!(rows_read.into_inner(), 4 * 1024);
    assert!(fs::read(&out).unwrap() == whole, "the resumed output differs");
    assert_eq!(names(folder.path()), ["m.gguf"]);
}

#[test]
fn a_part_of_something_else_is_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let whole = die_in_the_middle(&out);
    let rows_read = AtomicUsize::new(0);
    let mut events = Vec::new();
    let other = Job { made_from: vec!["another input".into()], ..job(&out) };
    other.run(&large_plan(At20::GoOn, &rows_read), &mut |event| events.push(event)).unwrap();
    assert_eq!(events[..2], [Event::Discarded, Event::Begun { total: whole.len() as u64, kept: 0 }]);
    assert_eq!(rows_read.into_inner(), 24 * 1024);
    assert!(fs::read(&out).unwrap() == whole, "the output differs");
}

#[test]
fn a_part_that_lost_its_length_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let whole = die_in_the_middle(&out);
    fs::File::options().write(true).open(folder.path().join("m.gguf.part")).unwrap().set_len(1000).unwrap();
    let rows_read = AtomicUsize::new(0);
    run(&out, &large_plan(At20::GoOn, &rows_read)).unwrap();
    assert_eq!(rows_read.into_inner(), 24 * 1024);
    assert!(fs::read(&out).unwrap() == whole, "the output differs");
}

#[test]
fn somebody_elses_file_of_the_partial_name_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf.part"), "precious").unwrap();
    let rows_read = AtomicUsize::new(0);
    let error = run(&folder.path().join("m.gguf"), &large_plan(At20::GoOn, &rows_read)).unwrap_err();
    assert!(error.to_string().contains("m.gguf.part: "), "{error}");
    assert_eq!(names(folder.path()), ["m.gguf.part"]);
    assert_eq!(fs::read(folder.path().join("m.gguf.part")).unwrap(), b"precious");
}

#[test]
fn a_source_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let rows_read = AtomicUsize::new(0);
    let error = run(&folder.path().join("m.gguf"), &large_plan(At20::Fail, &rows_read)).unwrap_err();
    assert_eq!(error.to_string(), "source: is damaged");
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

#[test]
fn names_that_are_taken_are_refused_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let file_plan = || gguf::plan(&[], vec![tensor("a", ElementType::F32, 2, 2, 0)]);
    let replace = |plan: &Plan<'_>| Job { existing: Existing::Replace, ..job(&out) }.run(plan, &mut |_| {});

    fs::write(&out, "precious").unwrap();
    assert!(run(&out, &file_plan()).unwrap_err().to_string().contains("--force"));
    assert!(replace(&folder_plan()).unwrap_err().to_string().contains("is a file"));
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    replace(&file_plan()).unwrap();
    assert!(fs::read(&out).unwrap().starts_with(b"GGUF"));

    fs::remove_file(&out).unwrap();
    fs::create_dir(&out).unwrap();
    assert!(replace(&file_plan()).unwrap_err().to_string().contains("is a folder"));
    run(&out, &folder_plan()).expect("an empty folder gives way");
    assert!(run(&out, &folder_plan()).unwrap_err().to_string().contains("--force"));
    replace(&folder_plan()).expect("a folder that is nothing but a checkpoint");
    fs::write(out.join("thesis.tex"), "precious").unwrap();
    assert!(replace(&folder_plan()).unwrap_err().to_string().contains("more than a checkpoint"));
    assert_eq!(names(&out), ["config.json", "model.safetensors", "thesis.tex"]);
    assert_eq!(names(folder.path()), ["out"]);
    let other_folders: [&[(&str, &str)]; 4] = [
        &[("a.json", "{}")],
        &[("config.json", "{}")],
        &[("model.safetensors", "")],
        &[("adapter_config.json", "{}"), ("adapter_model.safetensors", ""), ("config.json", "{}")],
    ];
    for files in other_folders {
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        files.iter().for_each(|(name, content)| fs::write(out.join(name), content).unwrap());
        assert!(replace(&folder_plan()).unwrap_err().to_string().contains("is not replaced"), "{files:?}");
        assert_eq!(names(&out).len(), files.len());
    }

    let error = run(&folder.path().join("missing").join("m.gguf"), &file_plan()).unwrap_err();
    assert!(error.to_string().contains("no such folder"), "{error}");
}

/// Where the name of an output is taken, the work is not begun; where it is taken meanwhile, it is not lost.
#[test]
fn a_whole_output_outlives_a_name_that_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (out, aside) = (folder.path().join("out"), folder.path().join("out.old"));
    run(&out, &folder_plan()).unwrap();
    let job = Job { existing: Existing::Replace, ..job(&out) };
    let take_the_name = || {
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("thesis.tex"), "precious").unwrap();
    };
    let mut begun = 0;
    let refused = job.run(&folder_plan(), &mut |event| {
        if matches!(event, Event::Begun { .. }) {
            begun += 1;
            take_the_name();
        }
    });
    assert!(refused.unwrap_err().to_string().contains("out.old: "));
    assert_eq!(names(folder.path()), ["out", "out.old", "out.part", "out.part.journal"]);
    let refused = job.run(&folder_plan(), &mut |_| begun += 1);
    assert!(refused.unwrap_err().to_string().contains("out.old: "));
    assert_eq!(begun, 1, "nothing is begun that cannot be ended");

    fs::remove_dir_all(&aside).unwrap();
    job.run(&folder_plan(), &mut |event| assert_ne!(event, Event::Discarded)).unwrap();
    assert_eq!(names(folder.path()), ["out"]);
    assert_eq!(names(&out), ["config.json", "model.safetensors"]);
}

#[test]
fn an_output_that_cannot_fit_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    // 2^60 bytes: more than any disk of today.
    let never = |_: Range<usize>, _: &mut [u8]| panic!("nothing may be read");
    let huge = NewTensor::new("a".into(), ElementType::F32, vec![1 << 40, 1 << 18], Box::new(never));
    let error = run(&out, &gguf::plan(&[], vec![huge])).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}
