use std::path::Path;
use std::{env, fs};

/// Compares with `it/goldens/NAME`; with ORBHOOK_BLESS=1 writes it instead.
pub(crate) fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/goldens").join(name);
    if env::var_os("ORBHOOK_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differs: Vec<String> = diff(&expected, actual);
    assert!(
        differs.is_empty(),
        "{} differs. If that is what you want: ORBHOOK_BLESS=1 cargo test --release -p orbhook-tests --test it -- NAME OF THE TEST\n{}",
        path.display(),
        differs.join("\n")
    );
}

fn diff(expected: &str, actual: &str) -> Vec<String> {
    let gone = expected
        .lines()
        .filter(|line| !actual.lines().any(|other| other == *line))
        .map(|line| format!("- {line}"));
    let new = actual
        .lines()
        .filter(|line| !expected.lines().any(|other| other == *line))
        .map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}
