//! What the codes of a format can stand for, in steps of the scale.

use crate::blocks::IQ4_LEVELS;
use crate::lanes::Lanes;

use super::groups::clamp;

/// The levels that a code chooses among.
pub(super) trait Codes: Copy {
    /// The level nearest to `x`.
    fn nearest<V: Lanes>(self, x: V) -> V;
    /// How a block stores a level: an integer in two's complement, or the number of the level.
    fn code(self, level: f32) -> u8;
}

/// All integers from `.0` to `.1`.
#[derive(Clone, Copy)]
pub(super) struct Integers(pub(super) f32, pub(super) f32);

impl Codes for Integers {
    #[inline(always)]
    fn nearest<V: Lanes>(self, x: V) -> V {
        V::from_int(clamp(x, self.0, self.1).round())
    }

    #[inline(always)]
    fn code(self, level: f32) -> u8 {
        level as i32 as u8
    }
}

/// The 16 uneven levels of IQ4_NL and IQ4_XS.
#[derive(Clone, Copy)]
pub(super) struct Iq4;

impl Codes for Iq4 {
    #[inline(always)]
    fn nearest<V: Lanes>(self, x: V) -> V {
        let mut level = V::splat(f32::from(IQ4_LEVELS[0]));
        for pair in IQ4_LEVELS.windows(2) {
            let (below, above) = (f32::from(pair[0]), f32::from(pair[1]));
            let step = V::splat(above - below);
            level = level.add(step.where_positive(x.sub(V::splat((below + above) / 2.0))));
        }
        level
    }

    #[inline(always)]
    fn code(self, level: f32) -> u8 {
        IQ4_LEVELS.iter().fold(0, |below, l| below + u8::from(f32::from(*l) < level))
    }
}
