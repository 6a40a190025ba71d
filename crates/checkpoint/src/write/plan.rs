//! What is to be written: tensors, their places in files, and the small files beside them.

use std::ops::Range;

use crate::{ElementType, Error};

/// Where the rows of a new tensor come from.
pub trait Rows: Send + Sync {
    /// Writes these rows, in the tensor's type, to `out` (`rows.len()` times its bytes of a row).
    ///
    /// Called from several threads, each range once, in no certain order. An error ends the job.
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error>;
}

impl<F: Fn(Range<usize>, &mut [u8]) -> Result<(), Error> + Send + Sync> Rows for F {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        self(rows, out)
    }
}

/// A tensor to be written.
pub struct NewTensor<'a> {
    pub(super) name: String,
    pub(super) element_type: ElementType,
    pub(super) shape: Vec<u64>,
    pub(super) source: Box<dyn Rows + 'a>,
}

impl<'a> NewTensor<'a> {
    /// A tensor of this name, type and shape (outermost dimension first); its rows are the last dimension's.
    ///
    /// # Panics
    /// If a row is no whole number of the type's blocks.
    pub fn new(name: String, element_type: ElementType, shape: Vec<u64>, source: Box<dyn Rows + 'a>) -> NewTensor<'a> {
        let tensor = NewTensor { name, element_type, shape, source };
        assert!(
            element_type.row_bytes(tensor.cols()).is_some(),
            "{}: rows of {} as {element_type}",
            tensor.name,
            tensor.cols()
        );
        tensor
    }

    /// Name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type in the file.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Shape, outermost dimension first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    fn cols(&self) -> usize {
        self.shape.last().map_or(1, |&n| n as usize)
    }

    /// Rows of all outer dimensions together.
    pub(super) fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product::<u64>() as usize
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.element_type.row_bytes(self.cols()).expect("checked when the tensor was made")
    }

    /// Bytes that the tensor takes in the file.
    pub fn bytes(&self) -> u64 {
        self.rows() as u64 * self.row_bytes() as u64
    }
}

/// Everything of an output before it is written.
pub struct Plan<'a> {
    pub(super) form: Form,
    pub(super) files: Vec<NewFile>,
    /// Each tensor with its place, in the order in which they are written.
    pub(super) tensors: Vec<(NewTensor<'a>, Place)>,
    /// Name and content of files that are too small to stream; only in a folder.
    pub(super) small_files: Vec<(String, Vec<u8>)>,
}

/// What appears under the output's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    File,
    Folder,
}

/// A file that holds tensors.
pub(super) struct NewFile {
    /// Name within the folder; empty where the output is this one file.
    pub(super) name: String,
    /// What stands before the data.
    pub(super) head: Vec<u8>,
    /// Length when whole.
    pub(super) len: u64,
}

/// Where a tensor goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Index into the plan's files.
    pub(super) file: usize,
    /// From the start of the file.
    pub(super) offset: u64,
}

impl<'a> Plan<'a> {
    /// Adds a small file to an output that is a folder, such as `config.json`.
    ///
    /// # Panics
    /// If the output is one file, or there is such a file already.
    pub fn add_file(&mut self, name: &str, content: Vec<u8>) {
        assert_eq!(self.form, Form::Folder, "{name} needs a folder");
        assert!(self.small_files.iter().all(|(other, _)| other != name), "{name} is there twice");
        self.small_files.push((name.to_owned(), content));
    }

    /// The tensors, in the order in which they are written.
    pub fn tensors(&self) -> impl Iterator<Item = &NewTensor<'a>> {
        self.tensors.iter().map(|(tensor, _)| tensor)
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        let streamed: u64 = self.files.iter().map(|file| file.len).sum();
        streamed + self.small_files.iter().map(|(_, content)| content.len() as u64).sum::<u64>()
    }
}
