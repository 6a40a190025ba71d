//! A model in several GGUF files: `NAME-00001-of-00003.gguf` and so on, each with its share of the tensors.

use std::path::{Path, PathBuf};

use super::{File, Metadata};
use crate::Error;

/// The paths of all parts of the model that `path` belongs to, in order; `path` alone if it is no part.
pub(crate) fn parts(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let Some(part) = path.file_name().and_then(|name| name.to_str()).and_then(PartName::parse) else {
        return Ok(vec![path.to_owned()]);
    };
    let paths: Vec<PathBuf> = (1..=part.count).map(|n| path.with_file_name(part.sibling(n))).collect();
    match paths.iter().find(|path| !path.is_file()) {
        Some(missing) => {
            let problem = format!("is missing, a part of {}; fetch it from where the others came from", path.display());
            Err(Error::not_found(missing, problem))
        }
        None => Ok(paths),
    }
}

/// Checks that a part says of itself what its name says.
pub(crate) fn check_part(file: &File, index: usize, count: usize) -> Result<(), Error> {
    let (no, of) = (file.metadata().u64("split.no"), file.metadata().u64("split.count"));
    let of = of.filter(|&of| of > 0);
    if no.unwrap_or(0) == index as u64 && of.unwrap_or(1) == count as u64 {
        return Ok(());
    }
    let problem = format!(
        "calls itself part {} of {}, where part {} of {count} is expected; give it back the name it was published under",
        no.unwrap_or(0) + 1,
        of.unwrap_or(1),
        index + 1
    );
    Err(Error::malformed(file.path(), problem))
}

/// Checks that all parts together hold as many tensors as the first says.
pub(crate) fn check_total(path: &Path, metadata: &Metadata, found: usize) -> Result<(), Error> {
    const KEY: &str = "split.tensors.count";
    match metadata.u64(KEY) {
        Some(said) if said != found as u64 => {
            let problem =
                format!("is {said}, but the parts hold {found} tensors; they are not of one model, fetch them again");
            Err(Error::key(path, KEY, problem))
        }
        _ => Ok(()),
    }
}

/// The taken apart name of a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PartName {
    stem: String,
    count: usize,
}

impl PartName {
    /// `None` for a name that is not of the form `STEM-NNNNN-of-NNNNN.gguf`.
    pub(crate) fn parse(name: &str) -> Option<PartName> {
        let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = stem.rsplit_once('-')?;
        let five_digits = |text: &str| (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then_some(());
        five_digits(number).and(five_digits(count))?;
        let count = count.parse().ok()?;
        (1..=count).contains(&number.parse().ok()?).then(|| PartName { stem: stem.to_owned(), count })
    }

    fn sibling(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_taken_apart() {
        let part = PartName::parse("a-b-00002-of-00003.gguf").unwrap();
        assert_eq!((part.stem.as_str(), part.count), ("a-b", 3));
        assert_eq!(part.sibling(1), "a-b-00001-of-00003.gguf");
        for other in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-+0001-of-00003.gguf"]
        {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
