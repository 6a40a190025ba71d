//! A pickled state dictionary: which tensors it names, and where their numbers are.

use std::path::Path;

use super::machine;
use crate::error::shown;
use crate::stored::{StoredType, elements};
use crate::{ElementType, Error};

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PickledTensor {
    /// Its key in the state dictionary.
    pub name: String,
    /// The entry of the archive that holds its numbers, `data/{storage}`.
    pub storage: String,
    /// The type of its elements.
    pub element_type: StoredType,
    /// Bytes of an element.
    pub element_bytes: u64,
    /// The shape, outermost dimension first; the strides are those of a contiguous tensor.
    pub shape: Vec<u64>,
    /// Elements of the storage before the tensor's first.
    pub offset: u64,
}

impl PickledTensor {
    /// Elements of the tensor; `None` if the product overflows.
    pub fn elements(&self) -> Option<u64> {
        elements(&self.shape)
    }
}

/// The tensors of a pickled state dictionary; `path` is for messages.
///
/// Errors: an instruction or class that a state dictionary does not need, by its name; a program that breaks its
/// own rules; a tensor that is not contiguous.
pub fn read_pickle(path: &Path, program: &[u8]) -> Result<Vec<PickledTensor>, Error> {
    let described = machine::run(path, program)?;
    if described.is_empty() {
        return Err(Error::malformed(path, "holds no tensors by name; it is no checkpoint of weights"));
    }
    described.into_iter().map(|(name, tensor)| check(path, name, tensor)).collect()
}

fn check(path: &Path, name: &str, tensor: machine::Tensor<'_>) -> Result<PickledTensor, Error> {
    if !is_contiguous(&tensor.shape, &tensor.strides) {
        let what = format!("tensor {} of shape {:?} with strides {:?}", shown(name), tensor.shape, tensor.strides);
        return Err(Error::unsupported(path, what, "save it again after tensor.contiguous()"));
    }
    let known = ElementType::from_name(tensor.dtype.name).map(StoredType::Known);
    Ok(PickledTensor {
        name: name.to_owned(),
        storage: tensor.storage.to_owned(),
        element_type: known.unwrap_or_else(|| StoredType::Foreign(tensor.dtype.name.to_owned())),
        element_bytes: tensor.dtype.bytes,
        shape: tensor.shape,
        offset: tensor.offset,
    })
}

/// True if the strides are those of rows without gaps; of a dimension of size 1 the stride means nothing.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = Some(1u64);
    let mut dimensions = shape.iter().zip(strides).rev();
    let fits = |(&n, &stride): (&u64, &u64)| {
        let fits = n == 1 || expected == Some(stride);
        expected = expected.and_then(|elements| elements.checked_mul(n));
        fits
    };
    shape.len() == strides.len() && dimensions.all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"w": tensor}` with the shape and strides as given, as torch writes it.
    fn program(shape: &[u8], strides: &[u8], class: &str) -> Vec<u8> {
        let mut program = b"\x80\x02}(X\x01\0\0\0w".to_vec();
        program.extend_from_slice(
            format!("c{class}\n((X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\00X\x03\0\0\0cpuK\x06tQK\x02(")
                .as_bytes(),
        );
        shape.iter().for_each(|&n| program.extend([b'K', n]));
        program.extend(b"t(");
        strides.iter().for_each(|&n| program.extend([b'K', n]));
        program.extend(b"t\x89ccollections\nOrderedDict\n)RtRu.");
        program
    }

    fn read(program: &[u8]) -> Result<Vec<PickledTensor>, String> {
        read_pickle(Path::new("a.pth"), program).map_err(|e| e.to_string())
    }

    const REBUILD: &str = "torch._utils\n_rebuild_tensor_v2";

    #[test]
    fn a_state_dictionary_is_read() {
        let tensors = read(&program(&[2, 3], &[3, 1], REBUILD)).unwrap();
        let tensor = PickledTensor {
            name: "w".into(),
            storage: "0".into(),
            element_type: StoredType::Known(ElementType::F16),
            element_bytes: 2,
            shape: vec![2, 3],
            offset: 2,
        };
        assert_eq!(tensors, [tensor]);
    }

    #[test]
    fn only_contiguous_tensors_are_taken() {
        assert!(read(&program(&[2, 1, 3], &[3, 77, 1], REBUILD)).is_ok());
        let message = read(&program(&[2, 3], &[1, 2], REBUILD)).unwrap_err();
        assert!(message.contains("tensor w") && message.contains("contiguous"), "{message}");
        assert!(read(&program(&[2, 3], &[1], REBUILD)).is_err());
    }

    #[test]
    fn classes_and_instructions_are_refused_by_name() {
        let message = read(&program(&[1], &[1], "posix\nsystem")).unwrap_err();
        assert!(message.contains("posix.system") && message.contains("nothing was run"), "{message}");
        for (program, name) in [
            (&b"\x80\x02c__builtin__\neval\n."[..], "__builtin__.eval"),
            (b"\x80\x02(ios\nsystem\n.", "INST"),
            (b"\x80\x02}}\x81.", "NEWOBJ"),
            (b"\x80\x02\x93.", "STACK_GLOBAL"),
            (b"\x80\x05.", "protocol 5"),
        ] {
            let message = read(program).unwrap_err();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_program_that_breaks_the_rules_is_refused() {
        let cases: [&[u8]; 12] = [
            b"",
            b".",
            b"\x80",
            b"}",
            b"u.",
            b"(X\x01\0\0\0a0u.",
            b"}(Nu.",
            b"Nh\x07.",
            b"t.",
            b"X\xff\xff\xff\xffa.",
            b"NNR.",
            b"\x8a\x09123456789.",
        ];
        for program in cases {
            assert!(read(program).is_err(), "{program:?}");
        }
    }

    /// Tuples of tuples, each doubling the one before: harmless as long as nobody unfolds them.
    #[test]
    fn a_billion_laughs_cost_nothing() {
        let mut program = b"\x80\x02K\x01q\x00".to_vec();
        for _ in 0..10_000 {
            program.extend(b"h\x00h\x00\x86q\x00");
        }
        program.push(b'.');
        assert!(read(&program).is_err());
    }
}
