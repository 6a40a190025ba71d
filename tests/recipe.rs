//! `tools/recipe` from manual pages to a report, with the real scripts and the real program, on a tiny model and short pages.

mod scratch;

use std::path::Path;
use std::process::{Command, Stdio};

use scratch::{Scratch, text};

/// Pages as Debian's packages hold them, where the recipe would have unpacked those.
fn write_pages(scratch: &Scratch) {
    let languages = [("en", "NAME"), ("fr", "NOM"), ("de", "BEZEICHNUNG"), ("it", "NOME"), ("es", "NOMBRE")];
    for (language, name) in languages {
        let folder = format!("out/data/debian/{language}");
        scratch.file(&format!("{folder}/complete"), "");
        let inner = if language == "en" { String::new() } else { format!("{language}/") };
        // Of forty names the hash holds out some five, of which each language needs two.
        for i in 0..40 {
            let about = format!("tool{i} \\- makes {i} {language} things of other things");
            let words: String = (0..60).map(|word| format!("{language}{} ", (word * 7 + i * 13) % 50)).collect();
            let page = format!(".TH TOOL{i} 1\n.SH {name}\n{about}\n.SH TEXT\n{words}\n.PP\n.BR {words}\n");
            scratch.file(&format!("{folder}/usr/share/man/{inner}man1/tool{i}.1"), page);
        }
    }
}

fn recipe(scratch: &Scratch, model: &Path) -> String {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/recipe"))
        .env("OCTET", env!("CARGO_BIN_EXE_octet"))
        .envs([("DENSE", text(model)), ("OUT", text(&scratch.path("out")))])
        .envs([("MINUTES", "0"), ("EVAL_CHARACTERS", "1600"), ("EVAL_QUESTIONS", "40")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said.into_owned()
}

#[test]
fn the_recipe_goes_from_pages_to_a_report_and_leaves_out_what_is_done() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("llama-dense", "model");
    scratch.file("model/tokenizer.json", scratch::bytes_tokenizer().to_string());
    write_pages(&scratch);

    let said = recipe(&scratch, &model);
    assert!(
        ["training: text", "training: sft", "training: dpo", "evaluating: eval-3-dpo"].iter().all(|s| said.contains(s))
    );
    let report = std::fs::read_to_string(scratch.path("out/report.md")).unwrap();
    for stage in ["0-upcycled", "1-text", "2-sft", "3-dpo"] {
        let rows: Vec<&str> = report.lines().filter(|line| line.starts_with(&format!("| {stage} |"))).collect();
        assert_eq!(rows.len(), 2, "{stage} in {report}");
        let cells: Vec<f64> = rows[0].split('|').skip(2).filter_map(|cell| cell.trim().parse().ok()).collect();
        assert!(cells.len() == 7 && cells.iter().all(|p| p.is_finite() && *p > 1.0), "{}", rows[0]);
    }
    assert_eq!(report.matches("- before: ").count(), 5, "{report}");
    assert!(scratch.path("out/model.gguf").is_file());

    std::fs::remove_file(scratch.path("out/eval-2-sft/sft-eval.json")).unwrap();
    let again = recipe(&scratch, &model);
    assert!(!again.contains("training") && again.matches("evaluating").count() == 1, "{again}");
    assert_eq!(std::fs::read_to_string(scratch.path("out/report.md")).unwrap(), report);
}
