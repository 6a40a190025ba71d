//! GGUF's keys and values.

use std::collections::HashMap;
use std::path::Path;

use super::bytes::Bytes;
use crate::Error;
use crate::error::shown;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's types
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A list of values of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's types
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

impl Value {
    /// The value as a non-negative integer, whatever integer type holds it.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a list.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    fn read(bytes: &mut Bytes<'_>, type_id: u32, context: Context<'_>) -> Result<Value, Error> {
        let what = "a key's value";
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(bytes.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(bytes.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(bytes.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(bytes.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(bytes.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(bytes.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(bytes.array(what)?)),
            7 => Value::Bool(u8::from_le_bytes(bytes.array(what)?) != 0),
            8 => Value::String(lossy(bytes.string(what)?)),
            9 => Value::Array(Array::read(bytes, context)?),
            10 => Value::U64(u64::from_le_bytes(bytes.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(bytes.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(bytes.array(what)?)),
            other => return Err(context.error(format!("has a value of unknown type {other}; the file is damaged"))),
        })
    }
}

impl Array {
    /// Elements of the list.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
        }
    }

    /// True for a list of nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The integers of a list of integers, whatever type holds them; `None` for others and for those above 2^63.
    pub fn integers(&self) -> Option<Vec<i64>> {
        fn wide<T: Copy + TryInto<i64>>(values: &[T]) -> Option<Vec<i64>> {
            values.iter().map(|&n| n.try_into().ok()).collect()
        }
        match self {
            Array::U8(v) => wide(v),
            Array::I8(v) => wide(v),
            Array::U16(v) => wide(v),
            Array::I16(v) => wide(v),
            Array::U32(v) => wide(v),
            Array::I32(v) => wide(v),
            Array::U64(v) => wide(v),
            Array::I64(v) => wide(v),
            _ => None,
        }
    }

    fn read(bytes: &mut Bytes<'_>, context: Context<'_>) -> Result<Array, Error> {
        let type_id = bytes.u32("a list's type")?;
        let len = bytes.u64("a list's length")?;
        Ok(match type_id {
            0 => Array::U8(numbers(bytes, len, context, u8::from_le_bytes)?),
            1 => Array::I8(numbers(bytes, len, context, i8::from_le_bytes)?),
            2 => Array::U16(numbers(bytes, len, context, u16::from_le_bytes)?),
            3 => Array::I16(numbers(bytes, len, context, i16::from_le_bytes)?),
            4 => Array::U32(numbers(bytes, len, context, u32::from_le_bytes)?),
            5 => Array::I32(numbers(bytes, len, context, i32::from_le_bytes)?),
            6 => Array::F32(numbers(bytes, len, context, f32::from_le_bytes)?),
            7 => Array::Bool(numbers(bytes, len, context, |[byte]: [u8; 1]| byte != 0)?),
            8 => Array::String(strings(bytes, len, context)?),
            10 => Array::U64(numbers(bytes, len, context, u64::from_le_bytes)?),
            11 => Array::I64(numbers(bytes, len, context, i64::from_le_bytes)?),
            12 => Array::F64(numbers(bytes, len, context, f64::from_le_bytes)?),
            9 => return Err(context.error("is a list of lists, which no known program writes".into())),
            other => return Err(context.error(format!("is a list of unknown type {other}; the file is damaged"))),
        })
    }
}

/// Reads `len` numbers of `N` bytes, which must be there before room is made for them.
fn numbers<const N: usize, T>(
    bytes: &mut Bytes<'_>,
    len: u64,
    context: Context<'_>,
    from: fn([u8; N]) -> T,
) -> Result<Vec<T>, Error> {
    let size = len.checked_mul(N as u64).ok_or_else(|| context.too_long(len))?;
    let raw = bytes.take(size, "a list")?;
    Ok(raw.as_chunks().0.iter().map(|&chunk| from(chunk)).collect())
}

/// Reads `len` strings, of which each takes at least the eight bytes of its length.
fn strings(bytes: &mut Bytes<'_>, len: u64, context: Context<'_>) -> Result<Vec<String>, Error> {
    if len > bytes.remaining() / 8 {
        return Err(context.too_long(len));
    }
    let mut strings = Vec::with_capacity(len as usize);
    for _ in 0..len {
        strings.push(lossy(bytes.string("a list of strings")?));
    }
    Ok(strings)
}

/// Text as the format promises it; stray bytes become U+FFFD, since some published vocabularies have them.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The file and key that a value belongs to, for messages.
#[derive(Clone, Copy)]
struct Context<'a> {
    path: &'a Path,
    key: &'a str,
}

impl Context<'_> {
    fn error(self, problem: String) -> Error {
        Error::key(self.path, shown(self.key), problem)
    }

    fn too_long(self, len: u64) -> Error {
        self.error(format!("claims a list of {len} elements, more than the file can hold; fetch the file again"))
    }
}

/// The keys of a file and their values, in file order.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn read(path: &Path, bytes: &mut Bytes<'_>, n_keys: u64) -> Result<Metadata, Error> {
        let mut metadata = Metadata::default();
        for _ in 0..n_keys {
            let key = bytes.name("a key")?;
            let type_id = bytes.u32("a key's type")?;
            let value = Value::read(bytes, type_id, Context { path, key: &key })?;
            if metadata.get(&key).is_some() {
                return Err(Error::key(path, shown(&key), "is there twice; the file is damaged, fetch it again"));
            }
            metadata.push(key, value);
        }
        Ok(metadata)
    }

    fn push(&mut self, key: String, value: Value) {
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
    }

    /// The keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// The value of a key, if it is a non-negative integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The value of a key, if it is a float.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// The value of a key, if it is a truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// The value of a key, if it is text.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The value of a key, if it is a list.
    pub fn array(&self, key: &str) -> Option<&Array> {
        self.get(key)?.as_array()
    }

    /// The value of a key, if it is a list of texts.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.array(key)? {
            Array::String(strings) => Some(strings),
            _ => None,
        }
    }

    /// The value of a key, if it is a list of 32-bit floats.
    pub fn f32s(&self, key: &str) -> Option<&[f32]> {
        match self.array(key)? {
            Array::F32(values) => Some(values),
            _ => None,
        }
    }
}
