//! Routing drawn for people: the text in the experts' colours, the load of each layer, repeats, kinds of text.

use std::path::Path;

use octet_tokenizer::{DecodeStream, Tokenizer};

use super::Text;
use super::routes::{Repeats, chance};
use crate::experts_view::{bar, cells};
use crate::format::{count, three_digits};
use crate::terminal::{Output, Painter, harmless};

/// Most tokens of a text that are shown one by one.
const MAX_SHOWN: usize = 512;
/// Experts in one row of a table.
const IN_A_ROW: usize = 8;

/// Everything about the texts. `layer` colours the first one; if it was chosen, the load by kind of text is that layer's
/// alone.
pub fn draw(model: &Path, tokenizer: &Tokenizer, texts: &[Text], layer: usize, is_chosen: bool) -> String {
    let painter = Painter::new(Output::Stdout);
    let routes = &texts[0].routes;
    let (layers, experts, each) = (routes.n_layers(), routes.num_experts, routes.per_token);
    let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    let mut drawing = format!(
        "{}: {layers} layers of {experts} experts, {each} on each token · {} tokens\n\n",
        model.display(),
        count(tokens as u64)
    );
    if texts.len() == 1 {
        drawing += &coloured(tokenizer, &texts[0], layer, painter);
    }
    for text in texts {
        drawing += &heat_map(text, painter);
        drawing += &repeats(text);
    }
    if texts.len() > 1 {
        let shown = if is_chosen { vec![layer] } else { vec![0, layers / 2, layers - 1] };
        drawing.extend(shown.into_iter().map(|layer| by_text(texts, layer, painter)));
    }
    drawing
}

/// The text itself: every token in the colours of its experts, each over a part of it that is as long as its weight. Without
/// colours a token a line, with its experts.
fn coloured(tokenizer: &Tokenizer, text: &Text, layer: usize, painter: Painter) -> String {
    let mut decoder = DecodeStream::new(tokenizer);
    let routes = &text.routes;
    let numbers: Vec<String> = (0..routes.num_experts).map(|e| painter.paint(e, &e.to_string())).collect();
    let mut drawing = format!("Layer {layer}, experts {}\n\n", numbers.join(" "));
    let tokens = text.ids.iter().zip(routes.experts(layer)).zip(routes.weights(layer)).take(MAX_SHOWN);
    for ((&id, experts), weights) in tokens {
        if painter.has_colour() {
            drawing += &segments(&harmless(&decoder.push(id)), experts, weights, painter);
            continue;
        }
        let one = |(expert, weight): (&u32, &f32)| format!("{expert} {:>3.0} %", 100.0 * weight);
        let chosen: Vec<String> = experts.iter().zip(weights).map(one).collect();
        drawing += &format!("  {}   {}\n", chosen.join("   "), harmless(tokenizer.piece(id)));
    }
    if text.ids.len() > MAX_SHOWN {
        drawing += &format!("\n… and {} more", count((text.ids.len() - MAX_SHOWN) as u64));
    }
    drawing.trim_end().to_owned() + "\n\n"
}

/// A token whose characters are shared out among its experts by their weights.
fn segments(token: &str, experts: &[u32], weights: &[f32], painter: Painter) -> String {
    let characters: Vec<char> = token.chars().collect();
    let (mut drawing, mut from, mut sum) = (String::new(), 0, 0.0);
    for (i, (&expert, weight)) in experts.iter().zip(weights).enumerate() {
        sum += weight;
        let end =
            if i + 1 == experts.len() { characters.len() } else { (sum * characters.len() as f32).round() as usize };
        // The first choice is seen in the shortest token.
        let end = end.max(usize::from(i == 0)).clamp(from, characters.len());
        let part: String = characters[from..end].iter().collect();
        // A style that is left open over the end of a line colours the rest of it.
        let lines: Vec<String> = part.split('\n').map(|line| painter.underlined(expert as usize, line)).collect();
        drawing += &lines.join("\n");
        from = end;
    }
    drawing
}

/// The load of each expert in each layer.
fn heat_map(text: &Text, painter: Painter) -> String {
    let (load, routes) = (text.routes.load(), &text.routes);
    let even = 1.0 / routes.num_experts as f64;
    let mut drawing = format!(
        "Load of {}: percent of a layer's choices; half a bar is an even share, {}\n",
        text.name,
        three_digits(100.0 * even)
    );
    for first in (0..routes.num_experts).step_by(IN_A_ROW) {
        let experts = first..routes.num_experts.min(first + IN_A_ROW);
        drawing += &header("layer", experts.clone(), painter);
        for layer in 0..routes.n_layers() {
            let row = cells(&load.shares(layer)[experts.clone()], first, even, painter);
            drawing += &format!("{layer:>5} {row}\n");
        }
    }
    drawing + "\n"
}

/// The numbers of experts above their cells.
fn header(label: &str, experts: std::ops::Range<usize>, painter: Painter) -> String {
    let numbers: Vec<String> = experts.map(|e| painter.paint(e, &format!("{e:<8}"))).collect();
    let line = format!("{label} {}", numbers.join(" "));
    line.trim_end().to_owned() + "\n"
}

/// How often neighbours share an expert, layer by layer.
fn repeats(text: &Text) -> String {
    let routes = &text.routes;
    let Repeats { first, any } = chance(routes.num_experts, routes.per_token);
    let both = if routes.per_token == 2 { "first or second" } else { "any" };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut drawing = format!(
        "Neighbouring tokens of {} with the same expert; by chance {} in the first choice, {} in {both}\n",
        text.name,
        percent(first),
        percent(any)
    );
    let column = |share: f64| format!("{:<20} {:>7}", bar(share, 20), percent(share));
    drawing += &format!("layer {:<28}   {both}\n", "first choice");
    for layer in 0..routes.n_layers() {
        if let Some(Repeats { first, any }) = routes.repeats(layer) {
            drawing += &format!("{layer:>5} {}   {}\n", column(first), column(any));
        }
    }
    drawing + "\n"
}

/// The load of one layer, text by text.
fn by_text(texts: &[Text], layer: usize, painter: Painter) -> String {
    let num_experts = texts[0].routes.num_experts;
    let even = 1.0 / num_experts as f64;
    let label = texts.iter().map(|text| text.name.chars().count()).max().unwrap_or(0).max(5);
    let mut drawing = format!("Load by text in layer {layer}\n");
    for first in (0..num_experts).step_by(IN_A_ROW) {
        let experts = first..num_experts.min(first + IN_A_ROW);
        drawing += &header(&format!("{:label$}", ""), experts.clone(), painter);
        for text in texts {
            let shares = text.routes.load().shares(layer);
            drawing += &format!("{:label$} {}\n", text.name, cells(&shares[experts.clone()], first, even, painter));
        }
    }
    drawing + "\n"
}
