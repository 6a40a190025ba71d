//! Pages on disk: a bounded folder of keys and values that fell out of memory, which survives a restart.
//!
//! A page's file is named by the hash of all tokens up to its end, chained page by page from what else the page depends
//! on. The folder belongs to one model and one format, which `octet-kv-cache` in it names; another one is refused.
//!
//! ```text
//! octet-kv-cache                         what the pages belong to; locked while an engine uses the folder
//! 0f3c….page                             SHA-256 of the rest, then the page's tokens, then its keys and values
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::{DiskCacheOptions, Error};

/// Names all tokens up to the end of a page.
pub(crate) type PageHash = [u8; 16];

/// Pages that may wait to be written; more are dropped rather than waited for.
const MOST_WAITING: usize = 16;
const MANIFEST: &str = "octet-kv-cache";
const CHECKSUM_BYTES: usize = 32;

/// The hash of a page after the page (or root) with hash `before`.
pub(crate) fn page_hash(before: &PageHash, tokens: &[u32]) -> PageHash {
    let mut hasher = Sha256::new();
    hasher.update(before);
    tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
    let mut hash = PageHash::default();
    hash.copy_from_slice(&hasher.finalize()[..16]);
    hash
}

/// The folder, and what is in it.
pub(crate) struct DiskCache {
    folder: PathBuf,
    most_bytes: u64,
    bytes: u64,
    files: HashMap<PageHash, Entry>,
    /// Files by last use.
    order: BTreeSet<(u64, PageHash)>,
    clock: u64,
    pages: Arc<Pages>,
    /// Writes them; `None` once it is waited for.
    thread: Option<JoinHandle<()>>,
    /// Holds the lock.
    _manifest: File,
}

struct Entry {
    bytes: u64,
    used: u64,
}

impl DiskCache {
    /// Opens or makes the folder for pages of `owner`: model and format in words.
    ///
    /// # Errors
    /// A folder that cannot be written, that another process uses, or that belongs to another model or format.
    pub(crate) fn open(options: &DiskCacheOptions, owner: &str) -> Result<DiskCache, Error> {
        let folder = &options.folder;
        let cannot = |error: io::Error| Error::Setting(format!("the cache folder {}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(cannot)?;
        let path = folder.join(MANIFEST);
        let mut manifest =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(cannot)?;
        if manifest.try_lock().is_err() {
            return Err(Error::Setting(format!("the cache folder {} is in use by another process", folder.display())));
        }
        let mut found = String::new();
        manifest.read_to_string(&mut found).map_err(cannot)?;
        if found.is_empty() {
            manifest.write_all(owner.as_bytes()).map_err(cannot)?;
        } else if found != owner {
            return Err(Error::Setting(format!(
                "the cache folder {} belongs to another model or format ({found}, not {owner}): delete it or name another",
                folder.display()
            )));
        }
        let pages = Arc::new(Pages::default());
        let (writer, place) = (Arc::clone(&pages), folder.clone());
        let mut cache = DiskCache {
            folder: folder.clone(),
            most_bytes: options.bytes,
            bytes: 0,
            files: HashMap::new(),
            order: BTreeSet::new(),
            clock: 0,
            pages,
            thread: Some(std::thread::spawn(move || write_all(&place, &writer))),
            _manifest: manifest,
        };
        cache.list().map_err(cannot)?;
        Ok(cache)
    }

    /// Learns what earlier runs left, oldest first, and removes what they left unfinished.
    fn list(&mut self) -> io::Result<()> {
        let mut found: Vec<(SystemTime, PageHash, u64)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            match hash_of(&path) {
                Some(hash) => found.push((metadata.modified()?, hash, metadata.len())),
                None if path.extension().is_some_and(|ext| ext == "writing") => fs::remove_file(&path)?,
                None => {}
            }
        }
        found.sort_unstable();
        for (_, hash, bytes) in found {
            self.remember(hash, bytes);
        }
        self.shrink(0);
        Ok(())
    }

    pub(crate) fn contains(&self, hash: &PageHash) -> bool {
        self.files.contains_key(hash)
    }

    /// Stores a page; false if the disk cannot keep up, and nothing is stored.
    pub(crate) fn store(&mut self, hash: PageHash, tokens: &[u32], page: &[u8]) -> bool {
        self.forget_failed();
        let bytes = (CHECKSUM_BYTES + tokens.len() * 4 + page.len()) as u64;
        if self.contains(&hash) || bytes > self.most_bytes {
            return true;
        }
        if self.pages.lock().waiting.len() >= MOST_WAITING {
            return false;
        }
        let mut content = vec![0; CHECKSUM_BYTES];
        tokens.iter().for_each(|token| content.extend(token.to_le_bytes()));
        content.extend_from_slice(page);
        self.shrink(bytes);
        self.remember(hash, bytes);
        self.pages.lock().waiting.push_back((hash, content));
        self.pages.arrived.notify_one();
        true
    }

    /// The keys and values of a page, if it is there, whole, and of these tokens.
    pub(crate) fn load(&mut self, hash: &PageHash, tokens: &[u32]) -> Option<Vec<u8>> {
        self.forget_failed();
        let used = self.files.get(hash)?.used;
        if self.pages.lock().is_under_way(hash) {
            return None;
        }
        let path = page_path(&self.folder, hash);
        // What cannot be read is as good as damaged.
        let mut content = fs::read(&path).unwrap_or_default();
        let whole = content.len() > CHECKSUM_BYTES
            && Sha256::digest(&content[CHECKSUM_BYTES..])[..] == content[..CHECKSUM_BYTES];
        let stored = content.get(CHECKSUM_BYTES..CHECKSUM_BYTES + tokens.len() * 4).unwrap_or_default();
        if !whole || !stored.iter().copied().eq(tokens.iter().flat_map(|token| token.to_le_bytes())) {
            self.forget(*hash);
            return None;
        }
        self.clock += 1;
        self.order.remove(&(used, *hash));
        self.order.insert((self.clock, *hash));
        self.files.get_mut(hash)?.used = self.clock;
        // The order of a later run; nothing is lost if it fails.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(content.split_off(CHECKSUM_BYTES + tokens.len() * 4))
    }

    fn remember(&mut self, hash: PageHash, bytes: u64) {
        self.clock += 1;
        self.bytes += bytes;
        self.order.insert((self.clock, hash));
        self.files.insert(hash, Entry { bytes, used: self.clock });
    }

    /// Removes the least recently used files until `more` bytes fit.
    fn shrink(&mut self, more: u64) {
        while self.bytes + more > self.most_bytes {
            let Some(&(_, oldest)) = self.order.first() else { return };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, hash: PageHash) {
        let Some(entry) = self.files.remove(&hash) else { return };
        self.order.remove(&(entry.used, hash));
        self.bytes -= entry.bytes;
        if !self.pages.lock().withdraw(&hash) {
            // What is gone already is what we want.
            let _ = fs::remove_file(page_path(&self.folder, &hash));
        }
    }

    /// Forgets the pages that could not be written.
    fn forget_failed(&mut self) {
        let failed = std::mem::take(&mut self.pages.lock().failed);
        failed.into_iter().for_each(|hash| self.forget(hash));
    }
}

fn page_path(folder: &Path, hash: &PageHash) -> PathBuf {
    let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(name + ".page")
}

fn hash_of(path: &Path) -> Option<PageHash> {
    let name = path.file_name()?.to_str()?.strip_suffix(".page").filter(|name| name.len() == 32 && name.is_ascii())?;
    let mut hash = PageHash::default();
    for (byte, i) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&name[i..i + 2], 16).ok()?;
    }
    Some(hash)
}

impl Drop for DiskCache {
    /// Waits until all is written.
    fn drop(&mut self) {
        self.pages.close();
        if let Some(thread) = self.thread.take() {
            // A panic over there has been told already.
            let _ = thread.join();
        }
    }
}

/// Pages on their way to the disk, between the cache and the thread that writes them.
#[derive(Default)]
struct Pages {
    queue: Mutex<Queue>,
    /// A page waits, or none will come any more.
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(PageHash, Vec<u8>)>,
    /// The one that is being written, until it is there or no longer wanted.
    current: Option<PageHash>,
    /// Those that could not be written.
    failed: Vec<PageHash>,
    is_closed: bool,
}

impl Pages {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next page to be written; `None` once there are no more.
    fn next(&self) -> Option<(PageHash, Vec<u8>)> {
        let mut queue = self.lock();
        loop {
            if let Some((hash, content)) = queue.waiting.pop_front() {
                queue.current = Some(hash);
                return Some((hash, content));
            }
            if queue.is_closed {
                return None;
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
    }
}

impl Queue {
    /// Whether a page is not on disk yet.
    fn is_under_way(&self, hash: &PageHash) -> bool {
        self.current == Some(*hash) || self.waiting.iter().any(|(waiting, _)| waiting == hash)
    }

    /// Takes back a page that is not on disk yet; false if there is none of this hash.
    fn withdraw(&mut self, hash: &PageHash) -> bool {
        let was_under_way = self.is_under_way(hash);
        self.waiting.retain(|(waiting, _)| waiting != hash);
        self.current = self.current.filter(|current| current != hash);
        was_under_way
    }
}

/// Writes pages until there are no more.
fn write_all(folder: &Path, pages: &Pages) {
    while let Some((hash, content)) = pages.next() {
        write(folder, pages, hash, content);
    }
}

/// Writes a page whole or not at all. A full disk costs the page and nothing else.
fn write(folder: &Path, pages: &Pages, hash: PageHash, mut content: Vec<u8>) {
    let checksum = Sha256::digest(&content[CHECKSUM_BYTES..]);
    content[..CHECKSUM_BYTES].copy_from_slice(&checksum);
    let path = page_path(folder, &hash);
    let beside = path.with_extension("writing");
    let written = fs::write(&beside, content);
    // Under the lock, so that a page that is withdrawn is either not there yet or there to be removed.
    let mut queue = pages.lock();
    let is_wanted = queue.current.take().is_some();
    let is_there = is_wanted && written.and_then(|()| fs::rename(&beside, &path)).is_ok();
    if is_wanted && !is_there {
        queue.failed.push(hash);
    }
    drop(queue);
    if !is_there {
        let _ = fs::remove_file(&beside);
    }
}

/// Names a checkpoint by its files' lengths and samples of what is in them, so that a changed file is noticed without
/// reading all of it.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn fingerprint(files: &[PathBuf]) -> io::Result<String> {
    use std::io::{Seek, SeekFrom};
    const SAMPLE: u64 = 1 << 16;
    const SAMPLES: u64 = 64;
    let mut hasher = Sha256::new();
    for path in files {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        hasher.update(len.to_le_bytes());
        for i in 0..SAMPLES {
            file.seek(SeekFrom::Start(len.saturating_sub(SAMPLE) / (SAMPLES - 1) * i))?;
            let mut sample = Vec::new();
            Read::by_ref(&mut file).take(SAMPLE).read_to_end(&mut sample)?;
            hasher.update(&sample);
        }
    }
    Ok(hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, bytes: u64, owner: &str) -> Result<DiskCache, Error> {
        DiskCache::open(&DiskCacheOptions { folder: folder.into(), bytes }, owner)
    }

    /// Loads once the writer has written.
    fn load(cache: &mut DiskCache, hash: &PageHash, tokens: &[u32]) -> Option<Vec<u8>> {
        while cache.contains(hash) && !page_path(&cache.folder, hash).exists() {
            std::thread::yield_now();
        }
        cache.load(hash, tokens)
    }

    #[test]
    fn pages_come_back_after_a_restart_and_only_to_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = [1, 2, 3];
        let hash = page_hash(&PageHash::default(), &tokens);
        let mut cache = open(folder.path(), 1000, "a").unwrap();
        cache.store(hash, &tokens, &[7; 100]);
        assert_eq!(load(&mut cache, &hash, &tokens).unwrap(), [7; 100]);
        assert!(open(folder.path(), 1000, "a").err().unwrap().to_string().contains("in use"));
        drop(cache);
        let refused = open(folder.path(), 1000, "b").err().unwrap().to_string();
        assert!(refused.contains("another model or format (a, not b)"), "{refused}");
        let mut cache = open(folder.path(), 1000, "a").unwrap();
        assert_eq!(cache.load(&hash, &tokens).unwrap(), [7; 100]);
        assert_eq!(cache.load(&hash, &[1, 2, 4]), None, "other tokens of the same name");
    }

    #[test]
    fn the_oldest_leave_first_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path(), 500, "a").unwrap();
        let hashes: Vec<PageHash> = (0..3).map(|i| page_hash(&PageHash::default(), &[i])).collect();
        for (i, hash) in (0..).zip(&hashes) {
            cache.store(*hash, &[i], &[0; 150]);
            load(&mut cache, hash, &[i]).unwrap();
        }
        assert!(!cache.contains(&hashes[0]) && cache.bytes <= 500);
        let path = page_path(folder.path(), &hashes[1]);
        let mut content = fs::read(&path).unwrap();
        content[60] ^= 1;
        fs::write(&path, content).unwrap();
        assert_eq!(cache.load(&hashes[1], &[1]), None);
        assert!(!path.exists() && cache.contains(&hashes[2]));
    }

    /// Waits until nothing is under way, and stops the writer: what is stored from then on waits.
    fn stop_writing(cache: &mut DiskCache) {
        cache.pages.close();
        cache.thread.take().unwrap().join().unwrap();
    }

    /// Bytes of the pages in a folder.
    fn bytes_on_disk(folder: &Path) -> u64 {
        let pages = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        pages.filter(|entry| hash_of(&entry.path()).is_some()).map(|entry| entry.metadata().unwrap().len()).sum()
    }

    #[test]
    fn a_page_that_could_not_be_written_or_is_gone_can_be_stored_again() {
        let folder = tempfile::tempdir().unwrap();
        let hash = page_hash(&PageHash::default(), &[1]);
        let path = page_path(folder.path(), &hash);
        let mut cache = open(folder.path(), 1000, "a").unwrap();
        // A folder stands where the file is to be made.
        fs::create_dir(path.with_extension("writing")).unwrap();
        assert!(cache.store(hash, &[1], &[7; 100]));
        while cache.contains(&hash) {
            assert_eq!(cache.load(&hash, &[1]), None);
            std::thread::yield_now();
        }
        assert_eq!(cache.bytes, 0);
        fs::remove_dir(path.with_extension("writing")).unwrap();
        for _ in 0..2 {
            assert!(cache.store(hash, &[1], &[7; 100]));
            assert_eq!(load(&mut cache, &hash, &[1]).unwrap(), [7; 100]);
            // Somebody tidies up.
            fs::remove_file(&path).unwrap();
            assert_eq!((cache.load(&hash, &[1]), cache.contains(&hash), cache.bytes), (None, false, 0));
        }
    }

    #[test]
    fn the_bound_holds_where_the_disk_is_slow() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = open(folder.path(), 500, "a").unwrap();
        stop_writing(&mut cache);
        let hashes: Vec<PageHash> = (0..6).map(|i| page_hash(&PageHash::default(), &[i])).collect();
        let mut store = |i: u32| assert!(cache.store(hashes[i as usize], &[i], &[0; 150]));
        (0..4).for_each(&mut store);
        // One of those that are left is given up while it is being written.
        let (hash, content) = cache.pages.next().unwrap();
        assert_eq!(hash, hashes[2]);
        let mut store = |i: u32| assert!(cache.store(hashes[i as usize], &[i], &[0; 150]));
        (4..6).for_each(&mut store);
        write(folder.path(), &cache.pages, hash, content);
        assert_eq!(bytes_on_disk(folder.path()), 0);
        write_all(folder.path(), &cache.pages);
        assert_eq!((bytes_on_disk(folder.path()), cache.bytes), (2 * 186, 2 * 186));
        assert_eq!(cache.load(&hashes[5], &[5]).unwrap(), [0; 150]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "two pages, and what they belong to");
    }
}
