//! Adapters that requests may name.

use octet_checkpoint::Params;
use octet_model::{Adapter, AdapterId, Transformer};

use crate::disk_cache::fingerprint;
use crate::{AdapterSource, Error};

/// An adapter of the model.
pub(crate) struct NamedAdapter {
    pub(crate) name: String,
    pub(crate) id: AdapterId,
    /// Tells its numbers from others.
    pub(crate) fingerprint: Vec<u32>,
}

/// All adapters of the model.
#[derive(Default)]
pub(crate) struct Adapters(Vec<NamedAdapter>);

/// An adapter that has been read, for a model that has not.
pub(crate) struct ReadAdapter {
    name: String,
    adapter: Adapter,
    fingerprint: Vec<u32>,
}

impl Adapters {
    /// Reads adapters for a model of this shape: what is wrong with them is said before the model is read.
    pub(crate) fn read(sources: &[AdapterSource], params: &Params) -> Result<Vec<ReadAdapter>, Error> {
        let read = |(index, source): (usize, &AdapterSource)| {
            let AdapterSource { name, folder } = source;
            if sources[..index].iter().any(|earlier| earlier.name == *name) {
                return Err(Error::Setting(format!("two adapters are called {name}; give one another name")));
            }
            let adapter = Adapter::read(folder, params)?;
            let files = ["adapter_config.json", "adapter_model.safetensors"].map(|file| folder.join(file));
            let unreadable = |error| Error::Setting(format!("{} cannot be read again: {error}", folder.display()));
            let fingerprint = fingerprint(&files).map_err(unreadable)?.bytes().map(u32::from).collect();
            Ok(ReadAdapter { name: name.clone(), adapter, fingerprint })
        };
        sources.iter().enumerate().map(read).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&NamedAdapter> {
        self.0.iter().find(|adapter| adapter.name == name)
    }
}

impl FromIterator<NamedAdapter> for Adapters {
    fn from_iter<I: IntoIterator<Item = NamedAdapter>>(adapters: I) -> Adapters {
        Adapters(adapters.into_iter().collect())
    }
}

impl ReadAdapter {
    pub(crate) fn add_to(self, model: &mut Transformer) -> Result<NamedAdapter, Error> {
        let id = model.add_adapter(&self.adapter)?;
        Ok(NamedAdapter { name: self.name, id, fingerprint: self.fingerprint })
    }
}
