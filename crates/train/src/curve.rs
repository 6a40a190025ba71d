//! The course of a run as a picture: SVG, which every browser shows.

use std::fmt::Write;

/// A line of the picture.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// What it shows.
    pub name: &'a str,
    /// A CSS color.
    pub color: &'a str,
    /// `(step, value)`, steps ascending.
    pub points: Vec<(u64, f64)>,
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
const TICKS: usize = 5;

/// The picture of `lines` over their steps. Values that are no numbers are left out.
pub fn svg(title: &str, lines: &[Line<'_>]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|point| point.1.is_finite());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let x_range = widened(range(&mut points().map(|point| point.0 as f64)));
    let y_range = widened(range(&mut points().map(|point| point.1)));
    let x = |step: f64| LEFT + (step - x_range.0) / (x_range.1 - x_range.0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y_range.0) / (y_range.1 - y_range.0) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\">{}</text>\n",
        escaped(title)
    );
    for tick in 0..=TICKS {
        let share = tick as f64 / TICKS as f64;
        let (step, value) = (at(x_range, share), at(y_range, share));
        let (across, up) = (x(step), y(value));
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {up:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>\
             <text x=\"{across:.1}\" y=\"{}\" text-anchor=\"middle\">{step:.0}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            up + 4.0,
            HEIGHT - BOTTOM + 18.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let finite = line.points.iter().filter(|point| point.1.is_finite());
        let path: Vec<String> = finite.map(|&(step, value)| format!("{:.1},{:.1}", x(step as f64), y(value))).collect();
        let across = WIDTH - RIGHT - 130.0 * (lines.len() - i) as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\
             <text x=\"{across}\" y=\"20\" fill=\"{}\">{}</text>",
            path.join(" "),
            line.color,
            line.color,
            escaped(line.name)
        );
    }
    out + "</svg>\n"
}

/// The mean of each value with those up to `span` steps before it.
pub fn smoothed(points: &[(u64, f64)], span: usize) -> Vec<(u64, f64)> {
    let window = |i: usize| &points[i.saturating_sub(span.max(1) - 1)..=i];
    (0..points.len())
        .map(|i| (points[i].0, window(i).iter().map(|point| point.1).sum::<f64>() / window(i).len() as f64))
        .collect()
}

fn at((low, high): (f64, f64), share: f64) -> f64 {
    low + (high - low) * share
}

/// A range that is none has room made around it.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    if low > high {
        (0.0, 1.0)
    } else if low == high {
        (low - 0.5, high + 0.5)
    } else {
        (low, high)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_falls_on_the_picture() {
        let points = vec![(1, 4.0), (2, f64::NAN), (3, 2.0)];
        let picture = svg("a < b", &[Line { name: "loss", color: "navy", points }]);
        assert!(picture.contains("a &lt; b"));
        assert!(picture.contains("points=\"60.0,40.0 780.0,360.0\""), "{picture}");
        assert!(!picture.contains("NaN"));
    }

    #[test]
    fn one_point_or_none_is_a_picture_too() {
        for points in [vec![], vec![(5, 1.0)]] {
            assert!(svg("", &[Line { name: "", color: "navy", points }]).ends_with("</svg>\n"));
        }
        assert_eq!(smoothed(&[(1, 1.0), (2, 3.0), (3, 5.0)], 2), [(1, 1.0), (2, 2.0), (3, 4.0)]);
    }
}
