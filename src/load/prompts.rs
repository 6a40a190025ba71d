//! Prompts of a known number of tokens.

use octet_engine::Random;

/// One token each, with the space before them.
const WORDS: &str = "the and for you not are all can had her was one our out day has him his how man new now old see two way \
    who its let put say she too use add age ago air any arm art ask ate car cut did dry due ear eat end eye far few fly \
    hat hit hot ice ill law lay led leg lie lot low map may men met mix nor off oil own pay per red run sad sat sea set \
    sir sit six sky son sun tax tea ten tie tip top try war wet win won yes yet";

/// All prompts of a run.
pub struct Prompts {
    seed: u64,
    shared: usize,
    own: usize,
}

impl Prompts {
    /// Prompts of `shared` words that are the same and `own` that differ.
    pub fn new(seed: u64, shared: usize, own: usize) -> Prompts {
        Prompts { seed, shared, own }
    }

    /// The prompt of request `index`.
    pub fn of(&self, index: usize) -> String {
        let own = words(self.seed.wrapping_mul(1_000_003).wrapping_add(index as u64 + 1_000), self.own);
        if self.shared == 0 {
            return own;
        }
        let shared = words(self.seed.wrapping_mul(1_000_003).wrapping_sub(1), self.shared);
        format!("{shared} {own}").trim_end().to_owned()
    }

    /// A prompt of `n` words that no request has.
    pub fn other(&self, index: usize, n: usize) -> String {
        words(!self.seed.wrapping_mul(1_000_003).wrapping_add(index as u64), n)
    }
}

fn words(seed: u64, n: usize) -> String {
    let all: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = Random::new(seed);
    let chosen: Vec<&str> = (0..n).map(|_| all[(random.bits() % all.len() as u64) as usize]).collect();
    chosen.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_what_they_should() {
        let prompts = Prompts::new(3, 5, 4);
        let (a, b) = (prompts.of(0), prompts.of(1));
        let split = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (a, b) = (split(&a), split(&b));
        assert!(a.len() == 9 && a[..5] == b[..5] && a[5..] != b[5..]);
        assert_eq!(prompts.of(1), prompts.of(1));
    }
}
