//! What was written to a file is what is read back, in pieces of any size, from any place, and after the file was cut and grown.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};

const NAME: &str = "/tmp/test-checksums";
const SIZE: usize = 3 * 1024 * 1024 + 17;

fn main() {
    match run() {
        Ok(()) => println!("PASS: checksums"),
        Err(error) => println!("FAIL: {error}"),
    }
    let _ = fs::remove_file(NAME);
}

fn run() -> io::Result<()> {
    let data = noise(SIZE);
    let whole = crc32fast::hash(&data);
    let mut file = File::create(NAME)?;
    for piece in data.chunks(4099) {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    for size in [1021, 4096, 65_537, SIZE] {
        same(&format!("read by {size}"), read_by(size)?, whole)?;
    }

    let mut file = OpenOptions::new().read(true).write(true).open(NAME)?;
    let (at, len) = (1_234_567, 100_001);
    file.seek(SeekFrom::Start(at as u64))?;
    let mut part = vec![0; len];
    file.read_exact(&mut part)?;
    same("from within", crc32fast::hash(&part), crc32fast::hash(&data[at..at + len]))?;

    file.set_len(at as u64)?;
    file.set_len(SIZE as u64)?;
    let mut holed = data[..at].to_vec();
    holed.resize(SIZE, 0);
    same("cut and grown", read_by(8192)?, crc32fast::hash(&holed))
}

fn read_by(size: usize) -> io::Result<u32> {
    let mut file = File::open(NAME)?;
    let mut sum = crc32fast::Hasher::new();
    let mut piece = vec![0; size];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(sum.finalize()),
            count => sum.update(&piece[..count]),
        }
    }
}

fn same(what: &str, found: u32, expected: u32) -> io::Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(io::Error::other(format!("{what}: {found:08x} instead of {expected:08x}")))
}

/// The same bytes each time, and no two blocks alike.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
