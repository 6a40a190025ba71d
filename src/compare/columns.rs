//! Two answers drawn side by side, or one below the other where there is no room.

use std::ops::Range;

use super::parting::{Choice, Parting};
use crate::format::{duration, rate, three_digits};
use crate::reply::{Reply, Said};
use crate::terminal::{Output, Painter, columns, harmless};

/// The least width of a column that can be read with ease.
const LEAST_COLUMN: usize = 32;
/// The widest, as lines of print are.
const WIDEST_COLUMN: usize = 76;
/// Between two columns.
const GAP: &str = " │ ";

/// An answer that is ready to be drawn.
pub struct Side {
    model: String,
    text: String,
    /// Bytes of the text at which it parts from the other.
    mark: Range<usize>,
    statistics: String,
}

impl Side {
    /// The answer of side `index`, whose tokens are `tokens`.
    pub fn new(model: &str, reply: &Reply, parting: Option<&Parting>, tokens: &[Said], index: usize) -> Side {
        let text = harmless(&reply.text);
        let mark = parting.map_or(0..0, |parting| place(&text, tokens, parting.sides[index].token));
        let whole = reply.first_token + reply.generation;
        let statistics = format!(
            "{} tokens, {} · {} in all · first token {}{}",
            reply.completion_tokens,
            rate(reply.rate()),
            duration(whole),
            duration(reply.first_token),
            if reply.finish_reason == "length" { " · cut by its limit" } else { "" }
        );
        Side { model: name(model), text, mark, statistics }
    }
}

/// The last part of a path; a name without one is what it is.
fn name(model: &str) -> String {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model).to_owned()
}

/// Bytes of `text` that token number `token` writes. An answer of its own does not begin with the space of its first token.
fn place(text: &str, tokens: &[Said], token: usize) -> Range<usize> {
    let before: usize = tokens[..token.min(tokens.len())].iter().map(|said| said.bytes.len()).sum();
    let length = tokens.get(token).map_or(0, |said| said.bytes.len());
    let lead = tokens.first().is_some_and(|said| said.bytes.starts_with(b" ")) && !text.starts_with(' ');
    let [start, end] = [before, before + length].map(|at| at.saturating_sub(usize::from(lead)).min(text.len()));
    let floor = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    floor(start)..floor(end)
}

/// Both answers and where they part, in `width` columns; without one, one below the other.
pub fn draw(sides: &[Side; 2], parting: Option<&Parting>, width: Option<usize>) -> String {
    let painter = Painter::new(Output::Stdout);
    let column = width.map_or(0, |width| (width.saturating_sub(columns(GAP)) / 2).min(WIDEST_COLUMN));
    let mut drawing = if column >= LEAST_COLUMN {
        side_by_side(sides, column, painter)
    } else {
        let width = width.unwrap_or(usize::MAX);
        let whole = |side| {
            let Lines { body, foot } = lines(side, width, painter);
            [body, foot].concat().join("\n") + "\n\n"
        };
        sides.iter().map(whole).collect()
    };
    drawing += &verdict(sides, parting, painter);
    drawing
}

fn side_by_side(sides: &[Side; 2], width: usize, painter: Painter) -> String {
    let [left, right] = sides.each_ref().map(|side| lines(side, width, painter));
    let row = |left: Option<&String>, right: Option<&String>| {
        let [left, right] = [left, right].map(|line| line.map_or("", String::as_str));
        let space = " ".repeat(width.saturating_sub(visible(left)));
        format!("{left}{space}{GAP}{right}").trim_end().to_owned() + "\n"
    };
    let mut drawing = String::new();
    // What stands under the texts begins on one line.
    for (left, right) in [(&left.body, &right.body), (&left.foot, &right.foot)] {
        drawing.extend((0..left.len().max(right.len())).map(|i| row(left.get(i), right.get(i))));
    }
    drawing + "\n"
}

/// An answer in lines.
struct Lines {
    /// The model, and the text.
    body: Vec<String>,
    /// What it took.
    foot: Vec<String>,
}

fn lines(side: &Side, width: usize, painter: Painter) -> Lines {
    let rule = "─".repeat(width.min(columns(&side.model).max(8)));
    let mut body: Vec<String> =
        wrap(&side.model, width).into_iter().map(|line| painter.bold(&side.model[line])).collect();
    body.push(painter.quiet(&rule));
    body.extend(wrap(&side.text, width).into_iter().map(|line| marked(&side.text, line, &side.mark, painter)));
    let statistics = wrap(&side.statistics, width).into_iter().map(|line| painter.quiet(&side.statistics[line]));
    Lines { body, foot: std::iter::once(String::new()).chain(statistics).collect() }
}

/// A line of the text, with the part of it that lies in `mark` marked.
fn marked(text: &str, line: Range<usize>, mark: &Range<usize>, painter: Painter) -> String {
    let [start, end] = [mark.start, mark.end].map(|at| at.clamp(line.start, line.end));
    format!("{}{}{}", &text[line.start..start], painter.marked(&text[start..end]), &text[end..line.end])
}

/// Columns that a line takes, without its styles.
fn visible(line: &str) -> usize {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    columns(&plain) + columns(rest)
}

/// The lines of a text that is at most `width` columns wide, as ranges of its bytes: broken between words, and within those
/// that are longer than a line.
fn wrap(text: &str, width: usize) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let mut at = 0;
    for paragraph in text.split('\n') {
        let end = at + paragraph.len();
        let mut start = at;
        while columns(&text[start..end]) > width {
            let cut = start + fitting(&text[start..end], width);
            let space = text[start..cut].rfind(' ').filter(|&n| n > 0).map_or(cut, |n| start + n);
            let cut = if text[cut..].starts_with(' ') { cut } else { space };
            lines.push(start..cut);
            start = cut + usize::from(text[cut..end].starts_with(' '));
        }
        lines.push(start..end);
        at = end + 1;
    }
    lines
}

/// Bytes of the longest beginning that is at most `width` columns wide, at least one character.
fn fitting(text: &str, width: usize) -> usize {
    let mut taken = 0;
    for (at, c) in text.char_indices() {
        taken += columns(c.encode_utf8(&mut [0; 4]));
        if taken > width && at > 0 {
            return at;
        }
    }
    text.len()
}

/// Where the answers part, and what each thought of the other's token.
fn verdict(sides: &[Side; 2], parting: Option<&Parting>, painter: Painter) -> String {
    let Some(Parting { sides: choices }) = parting else {
        return "Both say the same, to the end.\n".into();
    };
    let word = |choice: &Choice| choice.text.as_ref().map_or("(end)".into(), |text| format!("{:?}", harmless(text)));
    let words = choices.each_ref().map(word);
    let place = choices.each_ref().map(|choice| choice.token + 1);
    let place = if place[0] == place[1] { place[0].to_string() } else { format!("{} and {}", place[0], place[1]) };
    let mut text = format!("They part at token {place}: {} or {}.\n", painter.bold(&words[0]), painter.bold(&words[1]));
    let known = choices.iter().any(|choice| choice.probability.is_some());
    if !known {
        return text;
    }
    let percent = |p: Option<f64>| p.map_or("–".into(), |p| format!("{} %", three_digits(100.0 * p)));
    let other = |choice: &Choice| match choice.other_below {
        Some(least) => format!("< {}", percent(Some(least))),
        None => percent(choice.probability_of_other),
    };
    let cells =
        [[percent(choices[0].probability), other(&choices[0])], [other(&choices[1]), percent(choices[1].probability)]];
    let label = sides.iter().map(|side| columns(&side.model)).max().unwrap_or(0);
    let widths = words.each_ref().map(|word| columns(word).max(8));
    let right = |text: &str, width: usize| " ".repeat(width.saturating_sub(columns(text))) + text;
    text += &format!("  {:label$}  {}  {}\n", "", right(&words[0], widths[0]), right(&words[1], widths[1]));
    for (side, cells) in sides.iter().zip(cells) {
        let space = " ".repeat(label - columns(&side.model));
        let [first, second] = [right(&cells[0], widths[0]), right(&cells[1], widths[1])];
        text += &format!("  {}{space}  {first}  {second}\n", side.model);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str, width: usize) -> Vec<&str> {
        wrap(text, width).into_iter().map(|line| &text[line]).collect()
    }

    #[test]
    fn lines_break_between_words_and_by_width() {
        assert_eq!(broken("one two three", 7), ["one two", "three"]);
        assert_eq!(broken("one two three", 8), ["one two", "three"]);
        assert_eq!(broken("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(broken("a\n\nb", 9), ["a", "", "b"]);
        assert_eq!(broken("模型专家", 4), ["模型", "专家"]);
        assert_eq!(broken("x", usize::MAX), ["x"]);
    }

    #[test]
    fn a_token_is_found_in_the_text() {
        let said = |word: &str| Said { bytes: word.into(), ..Said::default() };
        let tokens = [said(" The"), said(" sky"), said(" is")];
        assert_eq!(&"The sky is"[place("The sky is", &tokens, 1)], " sky");
        assert_eq!(&" The sky is"[place(" The sky is", &tokens, 2)], " is");
        assert_eq!(place("The", &tokens, 3), 3..3);
    }

    #[test]
    fn answers_stand_side_by_side_where_there_is_room() {
        let side = |model: &str, text: &str| Side {
            model: model.into(),
            text: text.into(),
            mark: 0..0,
            statistics: "3 tokens".into(),
        };
        let sides = [side("a", "one"), side("b", "one\ntwo\nthree")];
        let drawing = draw(&sides, None, Some(80));
        let lines: Vec<&str> = drawing.lines().collect();
        assert!(lines[0].starts_with("a ") && lines[0].ends_with("│ b"), "{drawing}");
        assert!(lines[6].starts_with("3 tokens") && lines[6].ends_with("│ 3 tokens"), "{drawing}");
        assert!(!draw(&sides, None, None).contains('│') && !draw(&sides, None, Some(40)).contains('│'));
    }
}
