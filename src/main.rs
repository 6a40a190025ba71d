//! All of Mixtral in one program.

fn main() {}
