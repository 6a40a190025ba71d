//! A `config.json` or `params.json` of any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_checkpoint::Params;

fuzz_target!(|text: &str| {
    if let Ok(params) = Params::from_json("config.json".as_ref(), text) {
        assert!(params.n_active_parameters() <= params.n_parameters());
        assert!(params.tensors().take(1000).all(|name| params.shape(name).iter().all(|&n| n > 0)));
    }
});
