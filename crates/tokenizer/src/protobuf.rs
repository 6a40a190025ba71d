//! Just enough of protobuf's wire format to read and write SentencePiece models.
//!
//! A message is a run of fields; a field is a varint `number << 3 | wire type` and then its value. Nothing here
//! allocates: values of variable length are borrowed from the input, so a header that claims four gigabytes in a
//! file of ten bytes is an error and not an allocation.

/// The value of one field, as the wire tells it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Integers, enums and booleans.
    Varint(u64),
    /// Eight bytes, little endian.
    Fixed64(u64),
    /// Strings, bytes and nested messages.
    Bytes(&'a [u8]),
    /// Four bytes, little endian; floats come this way.
    Fixed32(u32),
}

/// Walks the fields of one message. Ends after the first malformed field, which it yields as an error.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of the message in `bytes`.
pub(crate) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), &'static str> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| TOO_LONG)?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err("a field has a wire type that SentencePiece models do not use"),
        };
        Ok((key >> 3, value))
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer has more than ten bytes")
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take(N) gives N bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TOO_LONG)?;
        self.rest = rest;
        Ok(taken)
    }
}

const TOO_LONG: &str = "a field is longer than what is left of the file";

/// Builds one message, field by field.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends an integer, enum or boolean.
    pub(crate) fn varint(&mut self, number: u64, value: u64) {
        self.raw_varint(number << 3);
        self.raw_varint(value);
    }

    /// Appends a string, bytes or a nested message.
    pub(crate) fn bytes(&mut self, number: u64, value: &[u8]) {
        self.raw_varint(number << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// Appends a float.
    pub(crate) fn float(&mut self, number: u64, value: f32) {
        self.raw_varint(number << 3 | 5);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// The message.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.varint(3, u64::MAX);
        writer.bytes(1, b"abc");
        writer.float(200, -1.5);
        let bytes = writer.finish();
        let read: Vec<_> = fields(&bytes).collect::<Result<_, _>>().unwrap();
        let expected =
            [(3, Value::Varint(u64::MAX)), (1, Value::Bytes(b"abc")), (200, Value::Fixed32((-1.5f32).to_bits()))];
        assert_eq!(read, expected);
    }

    #[test]
    fn hostile_bytes_are_errors() {
        let giant_length = [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f];
        let endless_varint = [0x80; 40];
        let group = [0x0b];
        for bytes in [&giant_length[..], &endless_varint, &group, &[0x0d, 1, 2]] {
            assert!(fields(bytes).any(|field| field.is_err()), "{bytes:?}");
        }
    }
}
