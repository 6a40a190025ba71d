//! Which pages hold which tokens: a tree whose nodes are pages, so that a prompt that begins like an earlier one shares
//! the pages of that beginning and computes only the rest.
//!
//! A node stands for a page after the pages of its ancestors. Keys and values depend on all tokens before them, so a path
//! from the root is the whole condition; a root stands for what else they depend on, see [`Variant`]. Inner nodes hold
//! full pages; a leaf may hold fewer tokens. With pages of 4 tokens:
//!
//! ```text
//! root ─ [a b c d] ┬ [e f g h] ─ [i j]      a conversation
//!                  └ [e f x y]              another: of its second page 2 tokens are copied from the first one's
//! ```
//!
//! The tree holds each of its pages once ([`KvCache::retain`]); a page that nobody else holds may be given up, leaves
//! first, the least recently used of them before the others.

use std::collections::{BTreeSet, HashMap};

use octet_model::{AdapterId, KvCache};

use crate::disk_cache::{DiskCache, PageHash, page_hash};

/// What keys and values depend on besides the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Variant {
    pub(crate) experts_per_token: usize,
    pub(crate) adapter: Option<AdapterId>,
}

/// Names a node. It stays valid while somebody besides the tree holds its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

struct Node {
    parent: Option<NodeId>,
    tokens: Vec<u32>,
    /// Meaningless in a root.
    page: u32,
    children: Vec<NodeId>,
    used: u64,
    /// Of all tokens up to the end of a full page, see [`page_hash`].
    hash: PageHash,
    /// It need not be written to disk: it is there, or no full page.
    saved: bool,
}

/// The tree.
#[derive(Default)]
pub(crate) struct PrefixCache {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    roots: HashMap<Variant, NodeId>,
    /// Nodes without children, roots aside, by last use.
    leaves: BTreeSet<(u64, NodeId)>,
    clock: u64,
    /// Where pages go that are given up.
    disk: Option<DiskCache>,
}

/// How a sequence can go on without computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) node: NodeId,
    pub(crate) page: u32,
    /// Tokens of the page that agree.
    pub(crate) n_tokens: usize,
}

impl PrefixCache {
    /// An empty tree, before what is on disk.
    pub(crate) fn new(disk: Option<DiskCache>) -> PrefixCache {
        PrefixCache { disk, ..PrefixCache::default() }
    }

    /// What is on disk, for another tree.
    pub(crate) fn take_disk(&mut self) -> Option<DiskCache> {
        self.disk.take()
    }

    /// Where sequences of this variant begin. `adapter`: what tells its adapter from others after a restart, too.
    pub(crate) fn root(&mut self, variant: Variant, adapter: &[u32]) -> NodeId {
        if let Some(&root) = self.roots.get(&variant) {
            return root;
        }
        let hash = page_hash(&PageHash::default(), &[&[variant.experts_per_token as u32], adapter].concat());
        let (tokens, children) = Default::default();
        let root = self.add(Node { parent: None, tokens, page: 0, children, used: 0, hash, saved: true });
        self.roots.insert(variant, root);
        root
    }

    /// The page after `node` that agrees longest with `tokens`, if any agrees with the first of them.
    pub(crate) fn next(&mut self, node: NodeId, tokens: &[u32]) -> Option<Match> {
        let agree = |child: &NodeId| common_prefix(&self.node(*child).tokens, tokens);
        let best = self.node(node).children.iter().map(|child| (agree(child), *child)).max_by_key(|(n, _)| *n);
        let (n_tokens, child) = best.filter(|(n, _)| *n > 0)?;
        self.touch(child);
        Some(Match { node: child, page: self.node(child).page, n_tokens })
    }

    /// Puts a page after `node`. If an equal one is there already, that stays and its page is what the caller should use.
    pub(crate) fn insert(&mut self, cache: &mut KvCache, node: NodeId, tokens: &[u32], page: u32) -> Match {
        if let Some(found) = self.next(node, tokens).filter(|found| found.n_tokens == tokens.len()) {
            return found;
        }
        let shorter = |child: &&NodeId| tokens.starts_with(&self.node(**child).tokens);
        if let Some(&shorter) = self.node(node).children.iter().find(shorter) {
            self.remove(cache, shorter);
        }
        cache.retain(page);
        let full = tokens.len() == KvCache::PAGE_TOKENS;
        let hash = if full { page_hash(&self.node(node).hash, tokens) } else { PageHash::default() };
        let (parent, tokens, saved) = (Some(node), tokens.to_vec(), !full || self.disk.is_none());
        let new = self.add(Node { parent, tokens, page, children: Vec::new(), used: 0, hash, saved });
        let parent = self.node(node).used;
        self.leaves.remove(&(parent, node));
        self.node_mut(node).children.push(new);
        self.touch(new);
        Match { node: new, page, n_tokens: self.node(new).tokens.len() }
    }

    /// Gives up the least recently used page that nobody else holds; false if there is none.
    pub(crate) fn evict(&mut self, cache: &mut KvCache) -> bool {
        let idle = |(_, leaf): &&(u64, NodeId)| cache.holders(self.node(*leaf).page) == 1;
        let Some(&(_, leaf)) = self.leaves.iter().find(idle) else { return false };
        self.save(cache, leaf);
        self.remove(cache, leaf);
        true
    }

    /// Reads the page of `tokens` after `node` from disk, if it is there. Pages are given up for it.
    pub(crate) fn restore(&mut self, cache: &mut KvCache, node: NodeId, tokens: &[u32]) -> Option<Match> {
        let hash = page_hash(&self.node(node).hash, tokens);
        let bytes = self.disk.as_mut()?.load(&hash, tokens)?;
        while cache.n_free() == 0 {
            if !self.evict(cache) {
                return None;
            }
        }
        let page = cache.take()?;
        if bytes.len() == cache.page(page).len() {
            cache.write_page(page, &bytes);
            let found = self.insert(cache, node, tokens, page);
            cache.release(page);
            self.node_mut(found.node).saved = true;
            return Some(found);
        }
        cache.release(page);
        None
    }

    /// Whether [`PrefixCache::restore`] would find something.
    pub(crate) fn is_on_disk(&self, node: NodeId, tokens: &[u32]) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.contains(&page_hash(&self.node(node).hash, tokens)))
    }

    /// Writes one page to disk that is not there yet; false if there is none, or the disk is busy.
    pub(crate) fn save_one(&mut self, cache: &KvCache) -> bool {
        self.unsaved().is_some_and(|node| self.save(cache, node))
    }

    /// A page that is to be written to disk.
    pub(crate) fn unsaved(&self) -> Option<NodeId> {
        let unsaved = |node: &Node| node.parent.is_some() && !node.saved;
        self.nodes.iter().position(unsaved).map(|index| NodeId(index as u32))
    }

    fn save(&mut self, cache: &KvCache, id: NodeId) -> bool {
        let PrefixCache { nodes, disk, .. } = self;
        let node = &mut nodes[id.0 as usize];
        if let Some(disk) = disk.as_mut().filter(|_| !node.saved) {
            node.saved = disk.store(node.hash, &node.tokens, cache.page(node.page));
        }
        node.saved
    }

    /// Gives up a leaf whose page one sequence holds, which then need not copy it to go on in it. Where a second one holds
    /// it, it would be copied all the same, and that one may stand at this very node.
    pub(crate) fn forget(&mut self, cache: &mut KvCache, page: u32) -> bool {
        if cache.holders(page) != 2 {
            return false;
        }
        let holds = |(_, leaf): &&(u64, NodeId)| self.node(*leaf).page == page;
        let Some(&(_, leaf)) = self.leaves.iter().find(holds) else { return false };
        self.remove(cache, leaf);
        true
    }

    /// Pages that [`PrefixCache::evict`] could give up, one after the other.
    pub(crate) fn evictable(&self, cache: &KvCache) -> usize {
        let in_tree = self.nodes.iter().filter(|node| node.parent.is_some());
        in_tree.filter(|node| cache.holders(node.page) == 1).count()
    }

    /// Removes a leaf.
    fn remove(&mut self, cache: &mut KvCache, leaf: NodeId) {
        debug_assert!(self.node(leaf).children.is_empty(), "only leaves are removed");
        self.leaves.remove(&(self.node(leaf).used, leaf));
        cache.release(self.node(leaf).page);
        self.node_mut(leaf).tokens = Vec::new();
        self.unused.push(leaf);
        let Some(parent) = self.node_mut(leaf).parent.take() else { return };
        self.node_mut(parent).children.retain(|child| *child != leaf);
        let Node { parent: above, children, used, .. } = self.node(parent);
        if above.is_some() && children.is_empty() {
            self.leaves.insert((*used, parent));
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.unused.pop() {
            *self.node_mut(id) = node;
            return id;
        }
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }

    fn touch(&mut self, id: NodeId) {
        self.clock += 1;
        let clock = self.clock;
        let before = std::mem::replace(&mut self.node_mut(id).used, clock);
        self.leaves.remove(&(before, id));
        if self.node(id).children.is_empty() {
            self.leaves.insert((clock, id));
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}

pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use octet_kernels::KvType;
    use octet_model::Config;

    use super::*;

    fn cache() -> KvCache {
        let config = Config {
            dim: 8,
            n_layers: 1,
            head_dim: 4,
            hidden_dim: 8,
            n_heads: 2,
            n_kv_heads: 1,
            vocab_size: 8,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            sliding_window: None,
            context_length: None,
            num_experts: 1,
            num_experts_per_tok: 1,
            routed: false,
        };
        KvCache::new(&config, KvType::F32, 4 * KvCache::PAGE_TOKENS).unwrap()
    }

    #[test]
    fn a_page_where_another_sequence_stands_is_not_forgotten() {
        let mut cache = cache();
        let mut tree = PrefixCache::new(None);
        let root = tree.root(Variant { experts_per_token: 1, adapter: None }, &[]);
        let tokens: Vec<u32> = (0..KvCache::PAGE_TOKENS as u32).collect();
        let page = cache.take().unwrap();
        let node = tree.insert(&mut cache, root, &tokens, page).node;
        let [one_goes_on_in_it, another_stands_at_it] = [cache.add_sequence(), cache.add_sequence()];
        cache.adopt_part(one_goes_on_in_it, page, 5);
        cache.adopt(another_stands_at_it, page);
        cache.release(page);
        assert!(!tree.forget(&mut cache, page));
        assert_eq!(tree.next(root, &tokens).map(|found| found.node), Some(node));

        cache.remove_sequence(another_stands_at_it);
        assert!(tree.forget(&mut cache, page));
        assert_eq!((tree.next(root, &tokens), cache.holders(page)), (None, 1));
    }
}
