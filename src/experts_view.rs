//! The experts at work, drawn in the terminal: a bar for each expert, in its own colour.

use std::io::IsTerminal;

use octet_model::{Record, Routing};

use crate::format::three_digits;

/// How often each expert of each layer was chosen.
#[derive(Default)]
pub struct Choices {
    /// `[layer][expert]`.
    counts: Vec<Vec<u64>>,
}

impl Record for Choices {
    fn routing(&mut self, layer: usize, routing: &Routing) {
        if self.counts.len() <= layer {
            self.counts.resize_with(layer + 1, Vec::new);
        }
        let counts = &mut self.counts[layer];
        counts.resize(routing.num_experts, 0);
        routing.experts.iter().for_each(|&e| counts[e as usize] += 1);
    }
}

impl Choices {
    /// One line an expert: its share of all choices, over all layers, with the layer that likes it most.
    ///
    /// ```text
    /// expert 0  ████████▌          14.2%   most in layer 3: 31.0%
    /// ```
    pub fn draw(&self) -> String {
        let n_experts = self.counts.first().map_or(0, Vec::len);
        if n_experts <= 1 {
            return "This model is dense: one expert sees every token.".into();
        }
        let total: u64 = self.counts.iter().flatten().sum();
        let even = 1.0 / n_experts as f64;
        let painter = Painter::for_stderr();
        let mut lines = vec![format!(
            "Experts: share of {total} choices in {} layers (even would be {}%)",
            self.counts.len(),
            three_digits(100.0 * even)
        )];
        for expert in 0..n_experts {
            let chosen: u64 = self.counts.iter().map(|layer| layer[expert]).sum();
            let share = chosen as f64 / total.max(1) as f64;
            let (layer, most) = self.favourite_layer(expert);
            let bar = bar(share / even / 2.0, 24);
            lines.push(format!(
                "  expert {expert:<2} {} {:>5}%   most in layer {layer}: {}%",
                painter.paint(expert, &format!("{bar:<24}")),
                three_digits(100.0 * share),
                three_digits(100.0 * most)
            ));
        }
        lines.join("\n")
    }

    fn favourite_layer(&self, expert: usize) -> (usize, f64) {
        let shares = self.counts.iter().enumerate().map(|(i, layer)| {
            let total: u64 = layer.iter().sum();
            (i, layer[expert] as f64 / total.max(1) as f64)
        });
        shares.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    }
}

/// A bar of eighths of a cell; `share` 1.0 fills `width` cells.
fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// The hues of the eight experts: `oklch(0.76 0.13 h)` with h = 25, 65, 105, 150, 195, 240, 285, 335, as sRGB.
const HUES: [(u8, u8, u8); 8] = [
    (243, 143, 134),
    (229, 159, 86),
    (195, 178, 78),
    (124, 197, 130),
    (42, 200, 200),
    (98, 183, 241),
    (166, 163, 247),
    (225, 144, 207),
];

/// Colours by expert where the terminal shows them.
pub struct Painter {
    depth: Depth,
}

enum Depth {
    Plain,
    Colours256,
    TrueColour,
}

impl Painter {
    /// A painter for standard error: no colour in pipes, or where `NO_COLOR` is set.
    pub fn for_stderr() -> Painter {
        let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let true_colour = std::env::var("COLORTERM").is_ok_and(|v| v == "truecolor" || v == "24bit");
        let depth = match (plain, true_colour) {
            (true, _) => Depth::Plain,
            (false, true) => Depth::TrueColour,
            (false, false) => Depth::Colours256,
        };
        Painter { depth }
    }

    /// `text` in the colour of `expert`.
    pub fn paint(&self, expert: usize, text: &str) -> String {
        let (r, g, b) = HUES[expert % HUES.len()];
        match self.depth {
            Depth::Plain => text.to_string(),
            Depth::TrueColour => format!("\x1b[38;2;{r};{g};{b}m{text}\x1b[0m"),
            Depth::Colours256 => {
                let [r, g, b] = [r, g, b].map(|c| (c as u32 * 5 + 127) / 255);
                format!("\x1b[38;5;{}m{text}\x1b[0m", 16 + 36 * r + 6 * g + b)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_over_layers() {
        let mut choices = Choices::default();
        let routing =
            |experts: &[u32]| Routing { experts: experts.to_vec(), per_token: 2, num_experts: 4, ..Default::default() };
        choices.routing(0, &routing(&[0, 1, 0, 2]));
        choices.routing(1, &routing(&[0, 3, 0, 3]));
        let drawing = choices.draw();
        assert!(drawing.contains("share of 8 choices in 2 layers"));
        assert!(drawing.contains("50.0%   most in layer"), "{drawing}");
        assert!(drawing.contains("25.0%   most in layer 1: 50.0%"), "{drawing}");
    }

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(0.5, 4), "██");
        assert_eq!(bar(1.0 / 32.0, 4), "▏");
        assert_eq!(bar(9.0, 2), "██");
    }
}
