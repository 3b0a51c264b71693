//! Keeps the entry points that cargo-pgrx reads the SQL entities from.
//!
//! cargo-pgrx would pass this by RUSTFLAGS, and every change of those makes cargo build pgrx anew: an extension that
//! was installed and one that is tested would each have a build of their own.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--no-gc-sections");
}
