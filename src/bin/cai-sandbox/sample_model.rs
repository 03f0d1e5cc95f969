//! A model that loads like one: configuration, tokenizer, index and two safetensors shards of random half-precision tensors.
//!
//! Layout of a shard: the header's length as a little-endian u64, the header (JSON: tensor name to dtype, shape and offsets
//! into the data), padded with spaces to eight bytes, the data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

/// Shards the model is split into.
const SHARDS: u64 = 2;
/// Decoder layers in each shard; each has [`TENSORS`].
const LAYERS: u64 = 4;
/// Tensors of a layer, by the names a Llama-like checkpoint uses.
const TENSORS: [&str; 4] =
    ["self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"];
/// Columns of every tensor; its rows follow from the size asked for.
const COLUMNS: u64 = 1024;
/// Bytes of a half-precision number.
const HALF: u64 = 2;

/// Write the model into `directory`, which is created; all tensors together have `mib` MiB, rounded down to whole rows.
pub fn write(directory: &Path, mib: u64) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let rows = (mib << 20) / (SHARDS * LAYERS * TENSORS.len() as u64 * COLUMNS * HALF);
    if rows == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a sample model has at least 1 MiB"));
    }
    let mut random = Random::seeded()?;
    let mut index = BTreeMap::new();
    for shard in 0..SHARDS {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1);
        let names: Vec<String> = (0..LAYERS)
            .flat_map(|layer| {
                TENSORS.iter().map(move |tensor| format!("model.layers.{}.{tensor}", shard * LAYERS + layer))
            })
            .collect();
        write_shard(&directory.join(&file), &names, rows, &mut random)?;
        index.extend(names.into_iter().map(|name| (name, file.clone())));
    }
    let total = rows * COLUMNS * HALF * index.len() as u64;
    let write_json = |name: &str, value: &Value| std::fs::write(directory.join(name), format!("{value:#}\n"));
    write_json(
        "model.safetensors.index.json",
        &json!({"metadata": {"total_size": total}, "weight_map": index}),
    )?;
    write_json("config.json", &config(rows))?;
    write_json("tokenizer.json", &tokenizer())
}

fn write_shard(path: &Path, names: &[String], rows: u64, random: &mut Random) -> io::Result<()> {
    let size = rows * COLUMNS * HALF;
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    for (position, name) in (0u64..).zip(names) {
        let offsets = [position * size, (position + 1) * size];
        header
            .insert(name.clone(), json!({"dtype": "F16", "shape": [rows, COLUMNS], "data_offsets": offsets}));
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut row = vec![0; usize::try_from(COLUMNS * HALF).map_err(io::Error::other)?];
    for _ in 0..rows * names.len() as u64 {
        random.fill(&mut row);
        file.write_all(&row)?;
    }
    file.into_inner()?.sync_all()
}

fn config(rows: u64) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "hidden_size": COLUMNS, "intermediate_size": rows, "num_hidden_layers": SHARDS * LAYERS,
        "num_attention_heads": 16, "vocab_size": 256,
    })
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        (0..256).map(|token| (format!("<0x{token:02X}>"), json!(token))).collect();
    json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

/// xorshift64*: bytes that no compressor or hole detection can shorten, at memory speed. Not for secrets.
struct Random(u64);

impl Random {
    fn seeded() -> io::Result<Self> {
        Ok(Random(getrandom::u64()? | 1))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            word.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
    }
}
