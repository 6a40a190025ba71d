//! Parquet files, row by row, each as the JSON object that its columns say.

use super::{Dataset, Example, Origin};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Reads every row. Errors: no Parquet file, or one with a compression that we do not read.
pub(super) fn read(file: File, name: &Arc<Path>, dataset: &mut Dataset) -> Result<(), String> {
    rows(file, name, dataset).map_err(|error| format!("{}: cannot be read as Parquet: {error}", name.display()))
}

fn rows(file: File, name: &Arc<Path>, dataset: &mut Dataset) -> Result<(), parquet::errors::ParquetError> {
    let reader = SerializedFileReader::new(file)?;
    for (row, number) in reader.get_row_iter(None)?.zip(1..) {
        let example = match row?.to_json_value() {
            Value::Object(row) => Example::from_row(&row),
            _ => Err("is not an object".into()),
        };
        dataset.push(Origin { file: name.clone(), number }, example);
    }
    Ok(())
}
