//! Products of every type beside what the machine can do: `cargo bench -p octet-kernels --bench matmul -- [options]`.
//!
//! One token is bound by memory: the figure is the share of a plain read that is measured just before it. Many tokens are
//! bound by arithmetic: the figure is multiply-adds a second. Machines drift and are shared, so each figure is the best of
//! several rounds, and only figures of one run compare.
//!
//! Options: `--threads N`, `--rounds N`, `--types Q4_K,Q6_K`, `--tokens 1,4,512`, `--rows N`, `--cols N`, `--mib N` (weights
//! that the one-token figure walks over; to be far beyond the last cache), `--clock cpu` (with one thread on Linux: counts
//! only the time that the thread really ran, for machines that others keep busy).

use std::time::Instant;

use octet_checkpoint::ElementType;
use octet_kernels::{Activations, PackedMatrix, Product, Reads, ThreadPool, limits, matmul};

struct Options {
    threads: usize,
    rounds: usize,
    types: Vec<ElementType>,
    tokens: Vec<usize>,
    rows: usize,
    cols: usize,
    mib: usize,
    clock: Clock,
}

/// What time is.
#[derive(Clone, Copy)]
enum Clock {
    Wall,
    /// Of the first thread.
    Cpu,
}

impl Clock {
    /// Seconds that `work` takes.
    fn time(self, work: impl FnOnce()) -> f64 {
        let start = Instant::now();
        let before = cpu_seconds();
        work();
        match self {
            Clock::Wall => start.elapsed().as_secs_f64(),
            Clock::Cpu => cpu_seconds() - before,
        }
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn options() -> Options {
    let types = "Q4_K,Q6_K,Q8_0,Q4_0,Q5_K,Q3_K,Q2_K,Q4_1,Q5_0,Q5_1,IQ4_NL,IQ4_XS,IQ2_XS,F16,BF16,F32";
    let mut options = Options {
        threads: octet_kernels::cpu::available_threads(),
        rounds: 5,
        types: parse_types(types),
        tokens: vec![1, 2, 4, 8, 16, 64, 512],
        rows: 4096,
        cols: 4096,
        mib: 512,
        clock: Clock::Wall,
    };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let (Some(name), Some(value)) = (args.next(), args.next()) {
        let number = || value.parse().expect("a number");
        match name.as_str() {
            "--threads" => options.threads = number(),
            "--rounds" => options.rounds = number(),
            "--rows" => options.rows = number(),
            "--cols" => options.cols = number(),
            "--mib" => options.mib = number(),
            "--clock" => options.clock = if value == "cpu" { Clock::Cpu } else { Clock::Wall },
            "--types" => options.types = parse_types(&value),
            "--tokens" => options.tokens = value.split(',').map(|n| n.parse().expect("a number")).collect(),
            _ => panic!("unknown option {name}"),
        }
    }
    options
}

fn parse_types(list: &str) -> Vec<ElementType> {
    list.split(',').map(|name| ElementType::from_name(name).expect("a type")).collect()
}

fn main() {
    let options = options();
    let pool = ThreadPool::new(options.threads);
    println!("{} threads, {}, {}x{}", options.threads, octet_kernels::cpu::features(), options.rows, options.cols);
    let tokens: Vec<String> = options.tokens.iter().map(|n| format!("{n:>7}")).collect();
    println!("type    read GB/s | GB/s and share at 1 token | GMAC/s at tokens{}", tokens.concat());
    for &kind in &options.types {
        let matrix = random_matrix(kind, &options, &pool);
        let copies = (options.mib << 20).div_ceil(matrix.bytes());
        let matrices: Vec<PackedMatrix> = (0..copies).map(|_| random_matrix(kind, &options, &pool)).collect();
        let (read, speed) = one_token(&pool, &matrices, &options);
        drop(matrices);
        print!(
            "{:<8}{:>8.1}  | {:>5.1} {:>4.0}%               |                 ",
            kind.name(),
            read,
            speed,
            100.0 * speed / read
        );
        for &n in &options.tokens {
            print!("{:>7.1}", many_tokens(&pool, &matrix, n, &options));
        }
        println!();
    }
}

fn random_matrix(kind: ElementType, options: &Options, pool: &ThreadPool) -> PackedMatrix {
    PackedMatrix::pack(pool, kind, options.rows, options.cols, &|rows, out| {
        let mut state = rows.start as u32 + 1;
        for byte in out.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Small exponents wherever a float may be read.
            *byte = (state >> 24) as u8 & 0x3f;
        }
    })
}

/// GB/s of a plain read, and of products of one token with matrices that no cache holds.
fn one_token(pool: &ThreadPool, matrices: &[PackedMatrix], options: &Options) -> (f64, f64) {
    let (x, mut y) = (activations(pool, 1, &matrices[0]), vec![0.0; options.rows]);
    let bytes: usize = matrices.iter().map(PackedMatrix::bytes).sum();
    let (mut read, mut speed) = (0.0f64, 0.0f64);
    for _ in 0..options.rounds {
        read = read.max(limits::read_bandwidth(pool, 1) / 1e9);
        let seconds = options.clock.time(|| {
            for w in matrices {
                matmul(pool, &mut [Product { w, x: &x, y: &mut y }]);
            }
        });
        speed = speed.max(bytes as f64 / seconds / 1e9);
    }
    (read, speed)
}

/// GMAC/s of a product with `tokens` tokens.
fn many_tokens(pool: &ThreadPool, w: &PackedMatrix, tokens: usize, options: &Options) -> f64 {
    let (x, mut y) = (activations(pool, tokens, w), vec![0.0; tokens * w.rows()]);
    let products = tokens as f64 * w.rows() as f64 * w.cols() as f64;
    let repeats = (2e9 / products).ceil() as usize;
    let mut best = 0.0f64;
    for _ in 0..options.rounds {
        let seconds = options.clock.time(|| {
            for _ in 0..repeats {
                matmul(pool, &mut [Product { w, x: &x, y: &mut y }]);
            }
        });
        best = best.max(products * repeats as f64 / seconds / 1e9);
    }
    best
}

fn activations(pool: &ThreadPool, tokens: usize, w: &PackedMatrix) -> Activations {
    let cols = w.cols();
    let mut x = Activations::new();
    x.set(
        pool,
        &(0..tokens * cols).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect::<Vec<_>>(),
        cols,
        Reads::of([w]),
    );
    x
}
