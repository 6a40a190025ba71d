//! JSON, one object a line.

use super::{Dataset, Example, Origin};
use serde_json::Value;
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

/// Longer lines are no examples but another kind of file.
const LONGEST_LINE_BYTES: u64 = 64 << 20;

/// Reads every line of `input`. Empty lines are passed over. Errors: the input fails.
pub(super) fn read(mut input: impl BufRead, file: &Arc<Path>, dataset: &mut Dataset) -> std::io::Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if (&mut input).take(LONGEST_LINE_BYTES + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let is_cut = line.len() as u64 > LONGEST_LINE_BYTES;
        let text = if number == 1 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line) } else { &line };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let origin = Origin { file: file.clone(), number };
        if is_cut {
            dataset.push(origin, Err(format!("is longer than {} MiB", LONGEST_LINE_BYTES >> 20)));
            break;
        }
        dataset.push(origin, example(text));
    }
    Ok(())
}

fn example(line: &[u8]) -> Result<Example, String> {
    let text =
        std::str::from_utf8(line).map_err(|error| format!("is not UTF-8 at byte {}", error.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Example::from_row(&row),
        Ok(_) if text.trim_start().starts_with('[') => {
            Err("is a JSON list; write one object a line (jq -c '.[]' FILE does so)".into())
        }
        Ok(_) => Err("is not a JSON object".into()),
        Err(_) if matches!(text.trim(), "[" | "{") => {
            Err("is JSON over several lines; write one object a line (jq -c does so)".into())
        }
        Err(error) => Err(format!("is not JSON: {}", without_line(&error))),
    }
}

/// serde_json counts lines of what it was given, which is always the first.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replace(&format!("at line {} column", error.line()), "at column")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &[u8]) -> Vec<String> {
        let mut dataset = Dataset::default();
        read(text, &Path::new("d.jsonl").into(), &mut dataset).unwrap();
        dataset.bad.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wrong_lines_are_named_and_good_ones_kept() {
        let text = b"\xEF\xBB\xBF{\"text\": \"a\"}\n\n{\"text\": \n[1]\n\"x\"\n{\"text\": \"\xff\"}\n{\"text\": \"b\"}";
        let mut dataset = Dataset::default();
        read(&text[..], &Path::new("d.jsonl").into(), &mut dataset).unwrap();
        assert_eq!(dataset.rows.len(), 2);
        assert_eq!(dataset.rows[1].origin.number, 7);
        let bad = bad(text);
        assert!(bad[0].starts_with("d.jsonl, line 3: is not JSON: ") && bad[0].contains("at column"), "{}", bad[0]);
        assert!(bad[1].starts_with("d.jsonl, line 4: is a JSON list"), "{}", bad[1]);
        assert_eq!(bad[2], "d.jsonl, line 5: is not a JSON object");
        assert_eq!(bad[3], "d.jsonl, line 6: is not UTF-8 at byte 11");
    }
}
