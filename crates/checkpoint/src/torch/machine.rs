//! The stack machine that runs a pickle.
//!
//! The real one can import any class and call it; ours knows the classes that stand in [`Class`], treats "calling" them
//! as making a value of this module, and refuses every other instruction and class by its name. Values live in an arena
//! and refer to each other by index, so that a program that repeats a value a billion times (by its memo) costs no
//! more than its own length.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::Error;
use crate::error::shown;

/// Runs a program that leaves a dictionary; returns the tensors in it by their keys, other entries passed over.
pub(super) fn run<'a>(path: &'a Path, program: &'a [u8]) -> Result<Vec<(&'a str, Tensor<'a>)>, Error> {
    let mut machine =
        Machine { path, program, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    machine.tensors(root)
}

/// Longest key of a storage; torch counts them from 0.
const MAX_STORAGE_KEY_BYTES: usize = 32;

/// Index of a node.
type Id = usize;

/// A value.
#[derive(Clone, Debug)]
enum Node<'a> {
    /// `None`, a truth value or a float: nothing that we look into.
    Opaque,
    Integer(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List,
    Dictionary(Vec<(Id, Id)>),
    Class(Class),
    Storage {
        key: &'a str,
        dtype: Dtype,
    },
    Tensor(Tensor<'a>),
}

/// A tensor as the program described it, nothing of it checked.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
    /// In elements.
    pub(super) offset: u64,
}

/// What a pickle may name.
#[derive(Clone, Copy, Debug)]
enum Class {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Safetensors' name of a storage's element type, and its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dtype {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
}

impl Class {
    fn from_names(module: &str, name: &str) -> Option<Class> {
        let storage = |name, bytes| Some(Class::Storage(Dtype { name, bytes }));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Class::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Class::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Class::RebuildParameter),
            ("torch", "FloatStorage") => storage("F32", 4),
            ("torch", "HalfStorage") => storage("F16", 2),
            ("torch", "BFloat16Storage") => storage("BF16", 2),
            ("torch", "DoubleStorage") => storage("F64", 8),
            ("torch", "LongStorage") => storage("I64", 8),
            ("torch", "IntStorage") => storage("I32", 4),
            ("torch", "ShortStorage") => storage("I16", 2),
            ("torch", "CharStorage") => storage("I8", 1),
            ("torch", "ByteStorage") => storage("U8", 1),
            ("torch", "BoolStorage") => storage("BOOL", 1),
            _ => None,
        }
    }
}

struct Machine<'a> {
    path: &'a Path,
    program: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs the program to its end; returns what it leaves.
    fn run(&mut self) -> Result<Id, Error> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            0x80 => self.protocol()?,
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.push(Node::Opaque),
            b'G' => self.take(8).map(|_| self.push(Node::Opaque))?,
            b'K' => self.take(1).map(|bytes| self.push(Node::Integer(bytes[0].into())))?,
            b'M' => self.array().map(|bytes| self.push(Node::Integer(u16::from_le_bytes(bytes).into())))?,
            b'J' => self.array().map(|bytes| self.push(Node::Integer(i32::from_le_bytes(bytes).into())))?,
            0x8a => self.long()?,
            b'X' => self.text()?,
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => self.short_tuple(usize::from(opcode - 0x84))?,
            b't' => self.pop_to_mark().map(|items| self.push(Node::Tuple(items)))?,
            b']' => self.push(Node::List),
            b'a' => self.append()?,
            b'e' => self.pop_to_mark().map(|_| ())?,
            b'}' => self.push(Node::Dictionary(Vec::new())),
            b's' => self.set_item()?,
            b'u' => self.set_items()?,
            b'q' => self.take(1).map(|bytes| u32::from(bytes[0])).and_then(|key| self.remember(key))?,
            b'r' => self.array().map(u32::from_le_bytes).and_then(|key| self.remember(key))?,
            b'h' => self.take(1).map(|bytes| u32::from(bytes[0])).and_then(|key| self.recall(key))?,
            b'j' => self.array().map(u32::from_le_bytes).and_then(|key| self.recall(key))?,
            b'c' => self.global()?,
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.pop().map(|_| ())?, // attributes of a dictionary, such as torch's _metadata: not needed
            other => return Err(self.refused_opcode(other)),
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        let problem = format!("its pickle {what} (byte {}); the file is damaged, fetch it again", self.at);
        Error::malformed(self.path, problem)
    }

    fn refused_opcode(&self, opcode: u8) -> Error {
        let what = format!("the pickle instruction {} ({opcode:#04x}) at byte {}", opcode_name(opcode), self.at - 1);
        Error::unsupported(
            self.path,
            what,
            "weights need no such thing, and nothing was run; get the model as safetensors",
        )
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        match self.program[self.at..].get(..len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => Err(self.damaged("ends before its last instruction")),
        }
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N).map(|bytes| bytes.try_into().expect("take returns the length asked for"))
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// Pops a value, which must be above the last mark.
    fn pop(&mut self) -> Result<Id, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.pop().expect("the stack is higher than its floor")),
            false => Err(self.damaged("takes from an empty stack")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Error> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.damaged("misses a mark")),
        }
    }

    fn protocol(&mut self) -> Result<(), Error> {
        match self.byte()? {
            2 | 3 => Ok(()),
            other => {
                let what = format!("pickle protocol {other}");
                Err(Error::unsupported(self.path, what, "save the file again with torch.save's default protocol, 2"))
            }
        }
    }

    /// An integer of as many bytes as it says, least first; none that weights need has more than eight.
    fn long(&mut self) -> Result<(), Error> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(self.damaged("holds an integer of more than 64 bits"));
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Node::Integer(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self) -> Result<(), Error> {
        let len = u32::from_le_bytes(self.array()?);
        let bytes = self.take(len as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Node::Text(text)),
            Err(_) => return Err(self.damaged("holds a name that is no UTF-8")),
        }
        Ok(())
    }

    fn short_tuple(&mut self, len: usize) -> Result<(), Error> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    /// Lists occur only among things that we do not look into: their items are dropped.
    fn append(&mut self) -> Result<(), Error> {
        self.pop().map(|_| ())
    }

    fn set_item(&mut self) -> Result<(), Error> {
        let value = self.pop()?;
        let key = self.pop()?;
        self.extend_dictionary([(key, value)])
    }

    fn set_items(&mut self) -> Result<(), Error> {
        let items = self.pop_to_mark()?;
        let pairs = items.as_chunks::<2>().0;
        if 2 * pairs.len() != items.len() {
            return Err(self.damaged("gives a dictionary a key without a value"));
        }
        self.extend_dictionary(pairs.iter().map(|&[key, value]| (key, value)))
    }

    fn extend_dictionary(&mut self, pairs: impl IntoIterator<Item = (Id, Id)>) -> Result<(), Error> {
        match self.stack.last().map(|&id| &mut self.nodes[id]) {
            Some(Node::Dictionary(entries)) => {
                entries.extend(pairs);
                Ok(())
            }
            _ => Err(self.damaged("fills a dictionary that is none")),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), Error> {
        match self.stack.last() {
            Some(&id) => {
                self.memo.insert(key, id);
                Ok(())
            }
            None => Err(self.damaged("takes from an empty stack")),
        }
    }

    fn recall(&mut self, key: u32) -> Result<(), Error> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.damaged("recalls what it never stored")),
        }
    }

    fn line(&mut self) -> Result<&'a str, Error> {
        let rest = &self.program[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.damaged("holds a name that is no UTF-8"))
    }

    fn global(&mut self) -> Result<(), Error> {
        let (module, name) = (self.line()?, self.line()?);
        match Class::from_names(module, name) {
            Some(class) => self.push(Node::Class(class)),
            None => {
                let what = format!("a pickle that asks for {}.{}", shown(module), shown(name));
                let remedy = "weights need no such thing, and nothing was run; get the model as safetensors";
                return Err(Error::unsupported(self.path, what, remedy));
            }
        }
        Ok(())
    }

    /// `("storage", class, key, device, elements)`: a reference to an entry of the archive.
    fn storage(&mut self) -> Result<(), Error> {
        let id = self.pop()?;
        if let Node::Tuple(items) = &self.nodes[id]
            && let [kind, class, key, _, _] = items[..]
            && let (Node::Text("storage"), Node::Class(Class::Storage(dtype)), Node::Text(key)) =
                (&self.nodes[kind], &self.nodes[class], &self.nodes[key])
            && key.len() <= MAX_STORAGE_KEY_BYTES
        {
            let storage = Node::Storage { key, dtype: *dtype };
            self.push(storage);
            return Ok(());
        }
        Err(self.damaged("refers to something that is no storage"))
    }

    /// What Python does as a call: here, the making of one of our own values.
    fn reduce(&mut self) -> Result<(), Error> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let (Node::Class(class), Node::Tuple(arguments)) = (&self.nodes[class], &self.nodes[arguments]) else {
            return Err(self.damaged("calls something that is no class"));
        };
        let made = match (class, arguments.as_slice()) {
            (Class::OrderedDict, []) => Some(Node::Dictionary(Vec::new())),
            (Class::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                self.tensor([*storage, *offset, *shape, *strides])
            }
            (Class::RebuildParameter, [tensor, ..]) => match &self.nodes[*tensor] {
                tensor @ Node::Tensor(_) => Some(tensor.clone()),
                _ => None,
            },
            _ => None,
        };
        match made {
            Some(node) => self.push(node),
            None => return Err(self.damaged("builds a tensor from the wrong parts")),
        }
        Ok(())
    }

    fn tensor(&self, [storage, offset, shape, strides]: [Id; 4]) -> Option<Node<'a>> {
        let (Node::Storage { key, dtype }, Node::Integer(offset)) = (&self.nodes[storage], &self.nodes[offset]) else {
            return None;
        };
        let (shape, strides) = (self.integers(shape)?, self.integers(strides)?);
        let offset = u64::try_from(*offset).ok()?;
        Some(Node::Tensor(Tensor { storage: key, dtype: *dtype, shape, strides, offset }))
    }

    fn integers(&self, tuple: Id) -> Option<Vec<u64>> {
        let Node::Tuple(items) = &self.nodes[tuple] else { return None };
        // More than any tensor has; also what keeps a tuple that is recalled often from being copied often.
        if items.len() > crate::stored::MAX_DIMENSIONS {
            return None;
        }
        items
            .iter()
            .map(|&id| match self.nodes[id] {
                Node::Integer(n) => u64::try_from(n).ok(),
                _ => None,
            })
            .collect()
    }

    /// The tensors of a dictionary, each key once, so that what comes out is no larger than the program.
    fn tensors(&self, root: Id) -> Result<Vec<(&'a str, Tensor<'a>)>, Error> {
        let Node::Dictionary(entries) = &self.nodes[root] else {
            return Err(self.damaged("leaves no dictionary of tensors"));
        };
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for &(key, value) in entries {
            if let (Node::Text(name), Node::Tensor(tensor)) = (&self.nodes[key], &self.nodes[value]) {
                if !names.insert(*name) {
                    return Err(self.damaged(&format!("holds tensor {} twice", shown(name))));
                }
                tensors.push((*name, tensor.clone()));
            }
        }
        Ok(tensors)
    }
}

/// Python's name of an instruction that we refuse.
fn opcode_name(opcode: u8) -> &'static str {
    match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "unknown to Python",
    }
}
