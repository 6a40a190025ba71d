//! Files, folders and standard input.

use super::{BadRow, Example, Origin, Row, json_lines, parquet_rows};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All rows of a source, in the order in which they stand there.
#[derive(Debug, Default)]
pub struct Dataset {
    /// What can be learned from.
    pub rows: Vec<Row>,
    /// What cannot.
    pub bad: Vec<BadRow>,
}

/// Endings of files that a folder is searched for.
const ENDINGS: [&str; 5] = ["jsonl", "ndjson", "json", "parquet", "txt"];

/// Reads a file, or every JSONL, Parquet and text file of a folder in the order of their names. A `.txt` file is one text.
///
/// # Errors
/// What cannot be opened or is of no kind that we read, in one line that names the path. Wrong rows are no error: see
/// [`Dataset::bad`].
pub fn read(path: &Path) -> Result<Dataset, String> {
    let mut dataset = Dataset::default();
    if !path.is_dir() {
        read_file(path, &mut dataset)?;
        return Ok(dataset);
    }
    let files = files_of(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if files.is_empty() {
        return Err(format!("{}: holds no file named *.{}", path.display(), ENDINGS.join(", *.")));
    }
    files.iter().try_for_each(|file| read_file(file, &mut dataset))?;
    Ok(dataset)
}

/// Reads JSONL from standard input or another stream, which messages call `name`.
///
/// # Errors
/// The stream fails.
pub fn read_from(input: impl BufRead, name: &Path) -> Result<Dataset, String> {
    let mut dataset = Dataset::default();
    json_lines::read(input, &name.into(), &mut dataset).map_err(|error| format!("{}: {error}", name.display()))?;
    Ok(dataset)
}

fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_file() && ENDINGS.contains(&ending) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, dataset: &mut Dataset) -> Result<(), String> {
    let io = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(io)?;
    let name: Arc<Path> = path.into();
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => parquet_rows::read(file, &name, dataset),
        Some("txt") => {
            let origin = Origin { file: name, number: 0 };
            match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => dataset.bad.push(BadRow { origin, problem: "is empty".into() }),
                Ok(text) => dataset.rows.push(Row { example: Example::Text(text), origin }),
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    dataset.bad.push(BadRow { origin, problem: "is not UTF-8".into() });
                }
                Err(error) => return Err(io(error)),
            }
            Ok(())
        }
        _ => json_lines::read(std::io::BufReader::new(file), &name, dataset).map_err(io),
    }
}

impl Dataset {
    /// Files a row away among the good or the bad.
    pub(super) fn push(&mut self, origin: Origin, example: Result<Example, String>) {
        match example {
            Ok(example) => self.rows.push(Row { example, origin }),
            Err(problem) => self.bad.push(BadRow { origin, problem }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("b.jsonl", "{\"text\": \"2\"}\n");
        write("a.txt", "1");
        write("notes.md", "no data");
        let dataset = read(folder.path()).unwrap();
        let texts: Vec<_> = dataset.rows.iter().map(|row| row.example.clone()).collect();
        assert_eq!(texts, [Example::Text("1".into()), Example::Text("2".into())]);
        assert!(dataset.rows[1].origin.to_string().ends_with("b.jsonl, line 1"));
    }

    #[test]
    fn a_folder_without_data_is_an_error_that_says_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().contains("*.jsonl"));
        assert!(read(Path::new("no/such.jsonl")).unwrap_err().starts_with("no/such.jsonl: "));
    }
}
