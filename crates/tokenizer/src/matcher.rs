//! Finds fixed strings in text: user-defined pieces, and control tokens in what a template wrote.

/// A set of strings with their ids, as a trie over bytes.
#[derive(Debug, Clone)]
pub(crate) struct Matcher {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// Sorted by byte.
    children: Vec<(u8, u32)>,
    id: Option<u32>,
}

impl Matcher {
    /// A matcher of `strings`; empty strings are left out, of equal ones the first counts.
    pub(crate) fn new<'a>(strings: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut matcher = Self { nodes: vec![Node::default()] };
        for (string, id) in strings {
            matcher.insert(string.as_bytes(), id);
        }
        matcher
    }

    fn insert(&mut self, string: &[u8], id: u32) {
        if string.is_empty() {
            return;
        }
        let mut node = 0usize;
        for &byte in string {
            let place = self.nodes[node].children.binary_search_by_key(&byte, |child| child.0);
            node = match place {
                Ok(found) => self.nodes[node].children[found].1 as usize,
                Err(place) => {
                    let new = self.nodes.len();
                    self.nodes[node].children.insert(place, (byte, new as u32));
                    self.nodes.push(Node::default());
                    new
                }
            };
        }
        self.nodes[node].id.get_or_insert(id);
    }

    /// The longest string that `text` begins with: its length in bytes and its id.
    pub(crate) fn longest_prefix(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut node = &self.nodes[0];
        let mut found = None;
        for (length, byte) in (1..).zip(text) {
            let Ok(child) = node.children.binary_search_by_key(byte, |child| child.0) else { break };
            node = &self.nodes[node.children[child].1 as usize];
            if let Some(id) = node.id {
                found = Some((length, id));
            }
        }
        found
    }

    /// The leftmost match in `text`, the longest where several begin: (start, end, id).
    pub(crate) fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).find_map(|start| {
            let (length, id) = self.longest_prefix(&bytes[start..])?;
            Some((start, start + length, id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_then_longest() {
        let matcher = Matcher::new([("[INST]", 3), ("[I", 1), ("</s>", 2), ("", 9)]);
        assert_eq!(matcher.find("a [INST] </s>"), Some((2, 8, 3)));
        assert_eq!(matcher.find("[INS"), Some((0, 2, 1)));
        assert_eq!(matcher.find("none"), None);
        assert_eq!(Matcher::new([]).find("x"), None);
    }
}
