//! Where two answers part: the first tokens after which their texts differ.

use serde::Serialize;

use crate::reply::Said;

/// The first tokens at which two texts differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parting {
    /// What the first one said there, and what the second one did.
    pub sides: [Choice; 2],
}

/// What a model said where the other said something else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Number of the token in its answer, from 0.
    pub token: usize,
    /// What it writes; `None` where the answer had ended.
    pub text: Option<String>,
    /// How likely this model found it.
    pub probability: Option<f64>,
    /// How likely this model found what the other said; `None` where that is not known.
    pub probability_of_other: Option<f64>,
    /// It is less likely than this, where it is none of the tokens that were told.
    pub other_below: Option<f64>,
}

impl Parting {
    /// The parting of two answers; `None` if they say the same. Answers that cut the same text into other tokens are
    /// followed until their texts differ.
    pub fn of(a: &[Said], b: &[Said]) -> Option<Parting> {
        let [i, j] = place(a, b)?;
        let sides = [Choice::of(a, i, b.get(j)), Choice::of(b, j, a.get(i))];
        Some(Parting { sides })
    }
}

impl Choice {
    fn of(tokens: &[Said], token: usize, other: Option<&Said>) -> Choice {
        let said = tokens.get(token);
        let found = said.zip(other).and_then(|(said, other)| said.top.iter().find(|(bytes, _)| *bytes == other.bytes));
        let least = said.filter(|_| other.is_some() && found.is_none()).and_then(|said| said.top.last());
        Choice {
            token,
            text: said.map(|said| String::from_utf8_lossy(&said.bytes).into_owned()),
            probability: said.and_then(|said| said.probability),
            probability_of_other: found.map(|(_, probability)| *probability),
            other_below: least.map(|(_, probability)| *probability),
        }
    }
}

/// Numbers of the tokens in both answers at which the texts part.
fn place(a: &[Said], b: &[Said]) -> Option<[usize; 2]> {
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        (i, j) = match common(&a[i..], &b[j..]) {
            Some((of_a, of_b)) => (i + of_a, j + of_b),
            None => return Some([i, j]),
        };
    }
    None
}

/// The least numbers of tokens from the beginning that write the same; `None` if the texts differ before.
///
/// `["ab", "c"]` and `["a", "bc"]` have (2, 2).
fn common(a: &[Said], b: &[Said]) -> Option<(usize, usize)> {
    let (mut i, mut j) = (1, 1);
    let (mut x, mut y) = (a.first()?.bytes.clone(), b.first()?.bytes.clone());
    loop {
        let n = x.len().min(y.len());
        if x[..n] != y[..n] {
            return None;
        }
        match x.len().cmp(&y.len()) {
            std::cmp::Ordering::Equal => return Some((i, j)),
            std::cmp::Ordering::Less => {
                x.extend_from_slice(&a.get(i)?.bytes);
                i += 1;
            }
            std::cmp::Ordering::Greater => {
                y.extend_from_slice(&b.get(j)?.bytes);
                j += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(words: &[&str]) -> Vec<Said> {
        let said = |word: &&str| Said { bytes: word.as_bytes().to_vec(), ..Said::default() };
        words.iter().map(said).collect()
    }

    fn parted(a: &[&str], b: &[&str]) -> Option<[usize; 2]> {
        Parting::of(&tokens(a), &tokens(b)).map(|parting| parting.sides.map(|side| side.token))
    }

    #[test]
    fn texts_part_where_they_differ_however_they_are_cut() {
        assert_eq!(parted(&["a", "b"], &["a", "b"]), None);
        assert_eq!(parted(&["a", "b"], &["a", "c"]), Some([1, 1]));
        assert_eq!(parted(&["ab", "c", "d"], &["a", "bc", "d"]), None);
        assert_eq!(parted(&["ab", "c", "x"], &["a", "bc", "y"]), Some([2, 2]));
        assert_eq!(parted(&["the", "n"], &["then"]), None);
        assert_eq!(parted(&["the", " x"], &["then"]), Some([0, 0]));
        assert_eq!(parted(&["a"], &["a", "b"]), Some([1, 1]));
        assert_eq!(parted(&[], &[]), None);
    }

    #[test]
    fn each_tells_how_likely_it_found_the_others_token() {
        let side = |own: &str, p: f64, top: &[(&str, f64)]| Said {
            id: None,
            bytes: own.into(),
            probability: Some(p),
            top: top.iter().map(|&(text, p)| (text.into(), p)).collect(),
        };
        let a = side("x", 0.6, &[("x", 0.6), ("y", 0.3)]);
        let b = side("y", 0.7, &[("y", 0.7), ("z", 0.1)]);
        let [a, b] = Parting::of(&[a], &[b]).unwrap().sides;
        assert_eq!((a.probability, a.probability_of_other, a.other_below), (Some(0.6), Some(0.3), None));
        assert_eq!((b.probability, b.probability_of_other, b.other_below), (Some(0.7), None, Some(0.1)));
    }
}
