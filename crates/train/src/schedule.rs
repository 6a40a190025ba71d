//! How the learning rate goes up and down.

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The peak until the end.
    Constant,
    /// Half a cosine from the peak down to [`Schedule::floor`].
    Cosine,
    /// A straight line from the peak down to [`Schedule::floor`].
    Linear,
}

/// The learning rate of every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub shape: Shape,
    /// The highest rate.
    pub peak: f32,
    /// The rate at the end, as a share of the peak.
    pub floor: f32,
    /// Steps in which the rate rises from 0 in a straight line; the first step has `peak / warmup_steps`.
    pub warmup_steps: u64,
    /// All steps, those of the warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f32 {
        if step < self.warmup_steps {
            return self.peak * ((step + 1) as f64 / self.warmup_steps as f64) as f32;
        }
        let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / falling as f64).min(1.0);
        let height = match self.shape {
            Shape::Constant => return self.peak,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Shape::Linear => 1.0 - progress,
        };
        let floor = f64::from(self.floor);
        (f64::from(self.peak) * (floor + (1.0 - floor) * height)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_in_a_line_and_falls_as_its_shape_says() {
        let schedule = Schedule { shape: Shape::Cosine, peak: 2.0, floor: 0.1, warmup_steps: 4, total_steps: 104 };
        assert_eq!([0, 1, 3, 4].map(|step| schedule.rate(step)), [0.5, 1.0, 2.0, 2.0]);
        assert!((schedule.rate(54) - 1.1).abs() < 1e-6);
        assert!((schedule.rate(104) - 0.2).abs() < 1e-6);
        assert!((schedule.rate(1000) - 0.2).abs() < 1e-6);
        let linear = Schedule { shape: Shape::Linear, ..schedule };
        assert!((linear.rate(29) - 1.55).abs() < 1e-6);
        assert_eq!(Schedule { shape: Shape::Constant, ..schedule }.rate(90), 2.0);
        let at_once = Schedule { warmup_steps: 0, total_steps: 0, ..schedule };
        assert!(at_once.rate(0).is_finite());
    }
}
