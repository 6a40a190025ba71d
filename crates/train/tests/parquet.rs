//! Parquet files as others write them: `data/*.parquet` are pyarrow's, of three conversations of which the second has no
//! answer, once for each compression.

use octet_train::dataset::{Example, read};
use std::path::PathBuf;

fn data(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

#[test]
fn rows_are_read_whatever_the_compression() {
    for compression in ["none", "snappy", "zstd"] {
        let dataset = read(&data(&format!("chats-{compression}.parquet"))).unwrap();
        assert_eq!(dataset.rows.len(), 2, "{compression}");
        let Example::Chat(chat) = &dataset.rows[0].example else { panic!("{:?}", dataset.rows[0]) };
        assert_eq!((chat.messages[0].content.as_str(), chat.messages[1].content.as_str()), ("Hé", "Ho"));
        assert_eq!(dataset.rows[1].origin.number, 3);
        let bad = dataset.bad[0].to_string();
        assert!(bad.ends_with(&format!("chats-{compression}.parquet, row 2: {NO_ANSWER}")), "{bad}");
    }
}

const NO_ANSWER: &str = "has no assistant message, so there is nothing to learn";

#[test]
fn a_compression_that_we_do_not_read_is_named() {
    let problem = read(&data("pairs-gzip.parquet")).unwrap_err();
    assert!(problem.contains("pairs-gzip.parquet") && problem.to_lowercase().contains("gzip"), "{problem}");
}

#[test]
fn damaged_files_are_errors() {
    let whole = std::fs::read(data("chats-snappy.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.parquet");
    let mut state = 7u64;
    for i in 0..300 {
        let mut bytes = whole.clone();
        if i % 3 == 0 {
            bytes.truncate(whole.len() * i / 300);
        } else {
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 56) as u8;
            }
        }
        std::fs::write(&path, bytes).unwrap();
        // Bytes that happen not to matter may still be read; nothing may panic, and errors name the file.
        if let Err(problem) = read(&path) {
            assert!(problem.contains("d.parquet"), "{problem}");
        }
    }
}
