//! Any bytes are an adapter or an error, and what fits of it is merged.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use sd_gen::adapter::{Adapter, AdapterUse, Deltas, EmbeddingFile, ModelWithDeltas};
use sd_gen::weights::{Checkpoint, ModelSource, TensorChanges, TensorSource};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static MODEL: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji")).expect("the built-in model"));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = EmbeddingFile::from_bytes("fuzz", bytes.to_vec()) {
        let _ = file.words(MODEL.spec());
    }
    let Ok(adapter) = Adapter::from_bytes("fuzz", bytes.to_vec()) else { return };
    let _ = (adapter.check_numbers(), adapter.base(), adapter.ranks(), adapter.fit(&MODEL));
    let used = AdapterUse { adapter: Arc::new(adapter), weight: 0.8, text_weight: -1.0 };
    let Ok(deltas) = Deltas::bind(&MODEL, &[used], true) else { return };
    let names = deltas.names();
    let model = ModelWithDeltas::new(&*MODEL, Arc::new(deltas));
    for (component, name) in names.into_iter().take(8) {
        let source = model.tensors(component);
        if let Some(shape) = source.shape(&name) {
            let _ = source.tensor(&name, &shape, DType::F32, &Device::Cpu);
        }
    }
});
