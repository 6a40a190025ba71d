//! What a terminal shows: colours where it has them, as many columns as it has.

use std::io::IsTerminal;

/// The hues of the eight experts, as sRGB: `oklch(0.76 0.13 h)` with h = 25, 65, 105, 150, 195, 240, 285, 335.
const ON_DARK: [(u8, u8, u8); 8] = [
    (243, 143, 134),
    (229, 159, 86),
    (195, 178, 78),
    (124, 197, 130),
    (42, 200, 200),
    (98, 183, 241),
    (166, 163, 247),
    (225, 144, 207),
];
/// The same on light ground: `oklch(0.66 0.14 h)`.
const ON_LIGHT: [(u8, u8, u8); 8] = [
    (219, 108, 102),
    (204, 125, 27),
    (160, 150, 0),
    (71, 170, 98),
    (0, 171, 173),
    (37, 156, 222),
    (138, 132, 228),
    (198, 110, 180),
];

/// Where something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Results.
    Stdout,
    /// What goes beside them.
    Stderr,
}

impl Output {
    /// Whether people look at it.
    pub fn is_terminal(self) -> bool {
        match self {
            Output::Stdout => std::io::stdout().is_terminal(),
            Output::Stderr => std::io::stderr().is_terminal(),
        }
    }
}

/// Columns of the terminal behind standard output; `None` in a pipe.
pub fn width() -> Option<usize> {
    if !Output::Stdout.is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)).filter(|&width| width > 0)
}

/// Columns that a text takes.
pub fn columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// Colours where the output shows them.
#[derive(Clone, Copy)]
pub struct Painter {
    depth: Depth,
    hues: [(u8, u8, u8); 8],
}

#[derive(Clone, Copy, PartialEq)]
enum Depth {
    Plain,
    Colours256,
    TrueColour,
}

impl Painter {
    /// A painter for an output: no colour in pipes, or where `NO_COLOR` is set.
    pub fn new(output: Output) -> Painter {
        let set = |name| std::env::var(name).unwrap_or_default();
        let true_colour = matches!(set("COLORTERM").as_str(), "truecolor" | "24bit");
        let depth = match (!output.is_terminal() || !set("NO_COLOR").is_empty(), true_colour) {
            (true, _) => Depth::Plain,
            (false, true) => Depth::TrueColour,
            (false, false) => Depth::Colours256,
        };
        // Terminals that tell their ground write its number last: 7 and 15 are whites.
        let is_light = matches!(set("COLORFGBG").rsplit(';').next(), Some("7" | "15"));
        Painter { depth, hues: if is_light { ON_LIGHT } else { ON_DARK } }
    }

    /// Whether it paints at all.
    pub fn has_colour(self) -> bool {
        self.depth != Depth::Plain
    }

    /// `text` in the colour of `expert`.
    pub fn paint(self, expert: usize, text: &str) -> String {
        self.styled(&self.colour(expert), text)
    }

    /// The same, underlined, so that spaces are seen too.
    pub fn underlined(self, expert: usize, text: &str) -> String {
        self.styled(&format!("4;{}", self.colour(expert)), text)
    }

    fn colour(self, expert: usize) -> String {
        let (r, g, b) = self.hues[expert % self.hues.len()];
        match self.depth {
            Depth::TrueColour => format!("38;2;{r};{g};{b}"),
            _ => format!("38;5;{}", nearest_of_256([r, g, b])),
        }
    }

    /// `text` with weight.
    pub fn bold(self, text: &str) -> String {
        self.styled("1", text)
    }

    /// `text` in grey.
    pub fn quiet(self, text: &str) -> String {
        self.styled("2", text)
    }

    /// `text` that is not to be overlooked.
    pub fn marked(self, text: &str) -> String {
        self.styled("1;7", text)
    }

    fn styled(self, style: &str, text: &str) -> String {
        match self.depth {
            Depth::Plain => text.to_owned(),
            _ if text.is_empty() => String::new(),
            _ => format!("\x1b[{style}m{text}\x1b[0m"),
        }
    }
}

/// The nearest colour of xterm's cube, whose levels are 0, 95, 135, 175, 215, 255.
fn nearest_of_256(rgb: [u8; 3]) -> usize {
    const LEVELS: [i32; 6] = [0, 95, 135, 175, 215, 255];
    let nearest = |c: u8| (0..6).min_by_key(|&i| (LEVELS[i] - i32::from(c)).abs()).unwrap_or(0);
    let [r, g, b] = rgb.map(nearest);
    16 + 36 * r + 6 * g + b
}

/// A text as a terminal may be given it: without control characters, by which a model could steer the terminal.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_as_deep_as_the_terminal() {
        let painter = |depth| Painter { depth, hues: ON_DARK };
        assert_eq!(painter(Depth::Plain).paint(0, "x"), "x");
        assert_eq!(painter(Depth::TrueColour).paint(9, "x"), "\x1b[38;2;229;159;86mx\x1b[0m");
        assert_eq!(painter(Depth::Colours256).paint(0, "x"), "\x1b[38;5;210mx\x1b[0m");
        assert_eq!(nearest_of_256([255, 0, 94]), 16 + 36 * 5 + 1);
    }

    #[test]
    fn a_text_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\nc"), "a [2Jb\nc");
    }
}
