//! The experts at work, drawn in the terminal: a bar for each expert, in its own colour.

use octet_model::{Record, Routing};

use crate::format::three_digits;
use crate::terminal::{Output, Painter};

/// How often each expert of each layer was chosen.
#[derive(Default)]
pub struct Choices {
    /// `[layer][expert]`.
    counts: Vec<Vec<u64>>,
}

impl Record for Choices {
    fn routing(&mut self, layer: usize, routing: &Routing) {
        self.add(layer, routing.num_experts, &routing.experts);
    }
}

impl Choices {
    /// Counts choices of a layer.
    pub fn add(&mut self, layer: usize, num_experts: usize, experts: &[u32]) {
        if self.counts.len() <= layer {
            self.counts.resize_with(layer + 1, Vec::new);
        }
        let counts = &mut self.counts[layer];
        counts.resize(num_experts, 0);
        experts.iter().for_each(|&e| counts[e as usize] += 1);
    }

    /// The share of a layer's choices that fell on each expert.
    pub fn shares(&self, layer: usize) -> Vec<f64> {
        let counts = &self.counts[layer];
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.iter().map(|&count| count as f64 / total).collect()
    }

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
        let painter = Painter::new(Output::Stderr);
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
        let shares = (0..self.counts.len()).map(|layer| (layer, self.shares(layer)[expert]));
        shares.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    }
}

/// Shares of several experts in a row, as bars and percent: a bar that is half full is an even share, which a line marks
/// where the bar is shorter.
pub fn cells(shares: &[f64], first_expert: usize, even: f64, painter: Painter) -> String {
    const WIDTH: usize = 4;
    let cell = |(expert, share): (usize, &f64)| {
        let bar = bar(share / even / 2.0, WIDTH);
        let filled = bar.chars().count();
        let rest = match filled <= WIDTH / 2 {
            true => format!("{:1$}▏{2:3$}", "", WIDTH / 2 - filled, "", WIDTH / 2 - 1),
            false => " ".repeat(WIDTH - filled),
        };
        let percent = if *share < 0.9995 { format!("{:4.1}", 100.0 * share) } else { " 100".into() };
        format!("{}{}{percent}", painter.paint(first_expert + expert, &bar), painter.quiet(&rest))
    };
    shares.iter().enumerate().map(cell).collect::<Vec<_>>().join(" ")
}

/// A bar of eighths of a cell; `share` 1.0 fills `width` cells.
pub fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
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
    fn an_even_share_is_half_a_bar_and_marked_where_the_bar_is_shorter() {
        let painter = Painter::new(Output::Stderr);
        if painter.has_colour() {
            println!("skipped: standard error is a terminal with colours");
            return;
        }
        assert_eq!(cells(&[0.125, 0.0, 0.25, 1.0], 0, 0.125, painter), "██▏ 12.5   ▏  0.0 ████25.0 ████ 100");
    }

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(0.5, 4), "██");
        assert_eq!(bar(1.0 / 32.0, 4), "▏");
        assert_eq!(bar(9.0, 2), "██");
    }
}
