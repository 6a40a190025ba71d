//! Cuts text into the words that byte-level BPE merges within.
//!
//! Every model family has a regular expression for this. There are few, all built from the same parts, so each is a
//! list of [`Rule`]s here, tried in order at each place as the alternatives of the expression are: faster than a
//! regex engine with look-ahead, and exact, as the tests against Hugging Face's `tokenizers` show.

use unicode_general_category::{GeneralCategory, get_general_category};

/// How a model cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Splitter {
    /// GPT-2 and whoever copied its byte-level tokenizer.
    Gpt2,
    /// GPT-2 after every digit was cut out on its own.
    Smollm,
    /// Llama 3: numbers in groups of three, any sign may lead a word.
    Llama3,
    /// As Llama 3, each digit on its own.
    Qwen2,
    /// Mistral's later vocabulary: words are cut where case changes.
    Tekken,
    /// Punctuation, then GPT-2, then numbers in threes: what llama.cpp does with files that name nothing.
    Default,
}

impl Splitter {
    /// Calls `visit` with each word of `text`, in order; together they are `text`.
    pub(crate) fn split<'t>(self, text: &'t str, visit: &mut dyn FnMut(&'t str)) {
        match self {
            Splitter::Gpt2 => by_rules(text, GPT2, visit),
            Splitter::Smollm => by_rules(text, DIGITS, &mut |part| by_rules(part, GPT2, visit)),
            Splitter::Llama3 => by_rules(text, LLAMA3, visit),
            Splitter::Qwen2 => by_rules(text, QWEN2, visit),
            Splitter::Tekken => by_rules(text, TEKKEN, visit),
            Splitter::Default => by_rules(text, PUNCTUATION, &mut |part| {
                by_rules(part, GPT2, &mut |word| by_rules(word, NUMBERS, &mut |piece| by_rules(piece, THREES, visit)))
            }),
        }
    }

    /// The splitter of these regular expressions, one applied after the other, as `tokenizer.json` files write them.
    pub(crate) fn of_patterns(patterns: &[&str]) -> Option<Self> {
        use Splitter::*;
        [Gpt2, Llama3, Qwen2, Tekken, Default].into_iter().find(|splitter| splitter.patterns() == patterns)
    }

    /// The regular expressions that cut as this splitter does.
    pub(crate) fn patterns(self) -> &'static [&'static str] {
        match self {
            Splitter::Gpt2 => &[GPT2_PATTERN],
            Splitter::Smollm => &[r"\p{N}", GPT2_PATTERN],
            Splitter::Llama3 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Splitter::Qwen2 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Splitter::Tekken => &[
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Splitter::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"],
        }
    }
}

const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One alternative of an expression.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// `'s|'t|'re|'ve|'m|'ll|'d`, in these letters only.
    Contraction,
    /// The same in any case.
    ContractionAnyCase,
    /// ` ?[class]+`: a run of one class, with a space before it.
    SpacedRun(u8),
    /// `[class]+`.
    Run(u8),
    /// `[^\r\n\p{L}\p{N}]?\p{L}+`: letters, with any one sign or space before them.
    LedLetters,
    /// Letters that begin in upper case and go on in lower, with any one sign or space before them.
    LedCasedWord,
    /// Upper case letters, then perhaps lower ones, with any one sign or space before them.
    LedUpperWord,
    /// `\p{N}{1,n}`.
    Numbers(usize),
    /// `[0-9][0-9][0-9]`.
    ThreeDigits,
    /// ` ?[^\s\p{L}\p{N}]+[tail]*`: signs, and the tail's characters after them.
    SignsAndTail(&'static str),
    /// `\s*[\r\n]+`: spaces up to the last line break.
    LineBreaks,
    /// `\s+(?!\S)`: spaces, but for the last one before a word.
    SpacesBeforeWord,
}

const GPT2: &[Rule] = &[
    Rule::Contraction,
    Rule::SpacedRun(LETTER),
    Rule::SpacedRun(NUMBER),
    Rule::SpacedRun(SIGN),
    Rule::SpacesBeforeWord,
    Rule::Run(SPACE),
];
const LLAMA3: &[Rule] = &[
    Rule::ContractionAnyCase,
    Rule::LedLetters,
    Rule::Numbers(3),
    Rule::SignsAndTail("\r\n"),
    Rule::LineBreaks,
    Rule::SpacesBeforeWord,
    Rule::Run(SPACE),
];
const QWEN2: &[Rule] = &[
    Rule::ContractionAnyCase,
    Rule::LedLetters,
    Rule::Numbers(1),
    Rule::SignsAndTail("\r\n"),
    Rule::LineBreaks,
    Rule::SpacesBeforeWord,
    Rule::Run(SPACE),
];
const TEKKEN: &[Rule] = &[
    Rule::LedCasedWord,
    Rule::LedUpperWord,
    Rule::Numbers(1),
    Rule::SignsAndTail("\r\n/"),
    Rule::LineBreaks,
    Rule::SpacesBeforeWord,
    Rule::Run(SPACE),
];
const PUNCTUATION: &[Rule] = &[Rule::Run(PUNCTUATION_MARK)];
const NUMBERS: &[Rule] = &[Rule::Run(NUMBER)];
const DIGITS: &[Rule] = &[Rule::Numbers(1)];
const THREES: &[Rule] = &[Rule::ThreeDigits];

/// Character classes, as bits.
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 4;
/// Neither letter, number nor space.
const SIGN: u8 = 8;
/// May stand in the upper part of a word: Lu, Lt, Lm, Lo, M.
const UPPER: u8 = 16;
/// May stand in the lower part of a word: Ll, Lm, Lo, M.
const LOWER: u8 = 32;
/// `[\p{P}\$\+<=>\^~\|]`.
const PUNCTUATION_MARK: u8 = 64;

const ASCII_CLASSES: [u8; 128] = {
    let mut classes = [0; 128];
    let mut code = 0u8;
    while code < 128 {
        classes[code as usize] = match code {
            b'a'..=b'z' => LETTER | LOWER,
            b'A'..=b'Z' => LETTER | UPPER,
            b'0'..=b'9' => NUMBER,
            b'\t'..=b'\r' | b' ' => SPACE,
            b'`' => SIGN,
            b'!'..=b'~' => SIGN | PUNCTUATION_MARK,
            _ => SIGN,
        };
        code += 1;
    }
    classes
};

fn classes(character: char) -> u8 {
    use GeneralCategory::*;
    if character.is_ascii() {
        return ASCII_CLASSES[character as usize];
    }
    match get_general_category(character) {
        UppercaseLetter | TitlecaseLetter => LETTER | UPPER,
        LowercaseLetter => LETTER | LOWER,
        ModifierLetter | OtherLetter => LETTER | UPPER | LOWER,
        SpacingMark | EnclosingMark | NonspacingMark => SIGN | UPPER | LOWER,
        DecimalNumber | LetterNumber | OtherNumber => NUMBER,
        ConnectorPunctuation | DashPunctuation | ClosePunctuation | FinalPunctuation | InitialPunctuation
        | OtherPunctuation | OpenPunctuation => SIGN | PUNCTUATION_MARK,
        _ if character.is_whitespace() => SPACE,
        _ => SIGN,
    }
}

/// Cuts `text` where one of `rules` matches; what none matches is a piece of its own.
fn by_rules<'t>(text: &'t str, rules: &[Rule], visit: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    let mut unmatched = 0;
    while unmatched < rest.len() {
        let here = &rest[unmatched..];
        match rules.iter().find_map(|rule| rule.matches(here)) {
            Some(length) => {
                let (gap, from_match) = rest.split_at(unmatched);
                let (word, after) = from_match.split_at(length);
                if !gap.is_empty() {
                    visit(gap);
                }
                visit(word);
                rest = after;
                unmatched = 0;
            }
            None => unmatched += first_len(here),
        }
    }
    if !rest.is_empty() {
        visit(rest);
    }
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// Bytes of the run at the start of `text` whose characters satisfy `belongs`.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.char_indices().find(|&(_, character)| !belongs(character)).map_or(text.len(), |(at, _)| at)
}

fn class_run(text: &str, class: u8) -> usize {
    run(text, |character| classes(character) & class != 0)
}

impl Rule {
    /// Bytes that match at the start of `text`; at least one.
    fn matches(self, text: &str) -> Option<usize> {
        let length = match self {
            Rule::Contraction => contraction(text, |a, b| a == b),
            Rule::ContractionAnyCase => contraction(text, |a, b| a.eq_ignore_ascii_case(&b) || is_long_s(a, b)),
            Rule::SpacedRun(class) => spaced(text, |rest| class_run(rest, class)),
            Rule::Run(class) => class_run(text, class),
            Rule::LedLetters => led(text, |rest| class_run(rest, LETTER)),
            Rule::LedCasedWord => led(text, cased_word),
            Rule::LedUpperWord => led(text, upper_word),
            Rule::Numbers(most) => text.chars().take(most).take_while(is_number).map(char::len_utf8).sum(),
            Rule::ThreeDigits => {
                3 * usize::from(text.len() >= 3 && text.bytes().take(3).all(|byte| byte.is_ascii_digit()))
            }
            Rule::SignsAndTail(tail) => spaced(text, |rest| signs_and_tail(rest, tail)),
            Rule::LineBreaks => {
                let spaces = &text[..class_run(text, SPACE)];
                spaces.rfind(['\r', '\n']).map_or(0, |at| at + 1)
            }
            Rule::SpacesBeforeWord => spaces_before_word(text),
        };
        (length > 0).then_some(length)
    }
}

fn is_number(character: &char) -> bool {
    classes(*character) & NUMBER != 0
}

/// `(?i)` folds U+017F, the long s, to `s`.
fn is_long_s(a: char, b: char) -> bool {
    a == '\u{17f}' && b == 's'
}

fn contraction(text: &str, equal: impl Fn(char, char) -> bool) -> usize {
    let Some(rest) = text.strip_prefix('\'') else { return 0 };
    for ending in ["s", "t", "re", "ve", "m", "ll", "d"] {
        let mut length = 1;
        let mut chars = rest.chars();
        let fits = ending.chars().all(|wanted| {
            chars.next().is_some_and(|character| {
                length += character.len_utf8();
                equal(character, wanted)
            })
        });
        if fits {
            return length;
        }
    }
    0
}

/// ` ?body`, where `body` cannot match a space.
fn spaced(text: &str, body: impl Fn(&str) -> usize) -> usize {
    match text.strip_prefix(' ') {
        Some(rest) => match body(rest) {
            0 => 0,
            length => 1 + length,
        },
        None => body(text),
    }
}

/// `[^\r\n\p{L}\p{N}]?body`: first with the leading character, and if `body` does not follow, without.
fn led(text: &str, body: impl Fn(&str) -> usize) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    if classes(first) & (LETTER | NUMBER) == 0 && first != '\r' && first != '\n' {
        let lead = first.len_utf8();
        let length = body(&text[lead..]);
        if length > 0 {
            return lead + length;
        }
    }
    body(text)
}

/// `[upper]*[lower]+`, where letters without case and marks are both: the upper run gives back what the lower needs.
fn cased_word(text: &str) -> usize {
    let upper = class_run(text, UPPER);
    let lower = class_run(&text[upper..], LOWER);
    if lower > 0 {
        return upper + lower;
    }
    let last_both = text[..upper].char_indices().rfind(|&(_, character)| classes(character) & LOWER != 0);
    last_both.map_or(0, |(at, character)| at + character.len_utf8())
}

/// `[upper]+[lower]*`.
fn upper_word(text: &str) -> usize {
    match class_run(text, UPPER) {
        0 => 0,
        upper => upper + class_run(&text[upper..], LOWER),
    }
}

fn signs_and_tail(text: &str, tail: &str) -> usize {
    match class_run(text, SIGN) {
        0 => 0,
        signs => signs + run(&text[signs..], |character| tail.contains(character)),
    }
}

/// The whole run of spaces at the end of the text, all but the last one before a word.
fn spaces_before_word(text: &str) -> usize {
    let spaces = class_run(text, SPACE);
    if spaces == text.len() {
        return spaces;
    }
    text[..spaces].char_indices().next_back().map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(splitter: Splitter, text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        splitter.split(text, &mut |word| words.push(word));
        words
    }

    #[test]
    fn words_of_each_family() {
        let text = "I'll see  you'RE 12345 McDONALDs!\n\n x";
        let cases = [
            (Splitter::Gpt2, "I|'ll| see| | you|'|RE| 12345| McDONALDs|!|\n\n| x"),
            (Splitter::Smollm, "I|'ll| see| | you|'|RE| |1|2|3|4|5| McDONALDs|!|\n\n| x"),
            (Splitter::Llama3, "I|'ll| see| | you|'RE| |123|45| McDONALDs|!\n\n| x"),
            (Splitter::Qwen2, "I|'ll| see| | you|'RE| |1|2|3|4|5| McDONALDs|!\n\n| x"),
            (Splitter::Tekken, "I|'ll| see| | you|'RE| |1|2|3|4|5| Mc|DONALDs|!\n\n| x"),
            (Splitter::Default, "I|'|ll| see| | you|'|RE| |123|45| McDONALDs|!|\n\n| x"),
        ];
        for (splitter, expected) in cases {
            assert_eq!(words(splitter, text).join("|"), expected, "{splitter:?}");
        }
    }
}
