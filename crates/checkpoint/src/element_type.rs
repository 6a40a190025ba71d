//! How the numbers of a tensor are stored: plain floats, or GGUF's quantized blocks.
//!
//! The sizes are facts of the file format; what the bytes mean is known by `octet-kernels`.

/// The storage type of a tensor's elements.
#[allow(non_camel_case_types, missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    IQ3_XXS,
    IQ3_S,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
}

use ElementType::*;

/// One row a type: type, name in the field, GGUF's number, elements in a block, bytes of a block.
const TABLE: [(ElementType, &str, u32, usize, usize); 20] = [
    (F32, "F32", 0, 1, 4),
    (F16, "F16", 1, 1, 2),
    (BF16, "BF16", 30, 1, 2),
    (Q4_0, "Q4_0", 2, 32, 18),
    (Q4_1, "Q4_1", 3, 32, 20),
    (Q5_0, "Q5_0", 6, 32, 22),
    (Q5_1, "Q5_1", 7, 32, 24),
    (Q8_0, "Q8_0", 8, 32, 34),
    (Q2_K, "Q2_K", 10, 256, 84),
    (Q3_K, "Q3_K", 11, 256, 110),
    (Q4_K, "Q4_K", 12, 256, 144),
    (Q5_K, "Q5_K", 13, 256, 176),
    (Q6_K, "Q6_K", 14, 256, 210),
    (IQ4_NL, "IQ4_NL", 20, 32, 18),
    (IQ4_XS, "IQ4_XS", 23, 256, 136),
    (IQ3_XXS, "IQ3_XXS", 18, 256, 98),
    (IQ3_S, "IQ3_S", 21, 256, 110),
    (IQ2_XXS, "IQ2_XXS", 16, 256, 66),
    (IQ2_XS, "IQ2_XS", 17, 256, 74),
    (IQ2_S, "IQ2_S", 22, 256, 82),
];

impl ElementType {
    /// Every type, in the order of the declaration.
    pub fn all() -> impl Iterator<Item = ElementType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (ElementType, &'static str, u32, usize, usize) {
        &TABLE[self as usize]
    }

    /// The field's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type of this name, in any case; `None` if there is none.
    pub fn from_name(name: &str) -> Option<ElementType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The number that GGUF files give this type.
    pub fn gguf_id(self) -> u32 {
        self.row().2
    }

    /// The type with this number in GGUF files; `None` if we do not know it.
    pub fn from_gguf_id(id: u32) -> Option<ElementType> {
        TABLE.iter().find(|row| row.2 == id).map(|row| row.0)
    }

    /// Elements that one block holds; 1 for plain floats.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is no whole number of blocks, or the product overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for the block formats, false for plain floats.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Mean bits that one weight takes.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_declaration() {
        for (i, t) in ElementType::all().enumerate() {
            assert_eq!(t as usize, i);
            assert_eq!(ElementType::from_gguf_id(t.gguf_id()), Some(t));
            assert_eq!(ElementType::from_name(&t.name().to_lowercase()), Some(t));
        }
    }
}
