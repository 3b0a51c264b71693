use std::io::IsTerminal as _;
use std::time::Duration;

use orbhook_tests::Request;
use serde_json::Value;

/// Objects and arrays that fit are shown on one line.
const WIDTH: usize = 100;

/// GoHighLevel and Zapier get every key they may ever get, most of them empty. So many in one object are only counted.
const LEFT_OUT_MIN: usize = 3;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const CYAN: &str = "36";

/// The headers worth showing: what a receiver checks.
const SHOWN_HEADERS: &[&str] =
    &["content-type", "webhook-id", "webhook-timestamp", "webhook-signature", "x-api-key", "x-recurse-parse"];

pub(crate) fn heading(text: &str) {
    println!(
        "\n{}",
        styled(BOLD, &format!("── {text} {}", "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4))))
    );
}

pub(crate) fn note(text: &str) {
    println!("  {text}");
}

pub(crate) fn show_sql(statement: &str) {
    for line in statement.lines() {
        println!("  {}", styled(CYAN, line));
    }
}

pub(crate) fn show_request(request: &Request, signature: &Result<(), String>, latency: Option<Duration>) {
    let after = latency
        .map(|latency| format!("  {:.1} ms after the commit", latency.as_secs_f64() * 1000.0))
        .unwrap_or_default();
    println!("\n  {}{}", styled(BOLD, &format!("{} {}", request.method, request.path)), styled(DIM, &after));
    for (name, value) in &request.headers {
        if SHOWN_HEADERS.iter().any(|shown| name.eq_ignore_ascii_case(shown)) {
            println!("  {}", styled(DIM, &format!("{name}: {value}")));
        }
    }
    match signature {
        Ok(()) => println!("  {}", styled(GREEN, "signature verified")),
        Err(reason) => println!("  {}", styled(RED, &format!("SIGNATURE: {reason}"))),
    }
    let mut body = String::new();
    write_value(&mut body, &request.json(), 4);
    println!("    {body}");
}

fn styled(style: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
}

/// JSON for people: what fits stands on one line, and a text with line breaks is shown with them.
fn write_value(out: &mut String, value: &Value, indent: usize) {
    let one_line = value.to_string();
    let entries: Vec<(Option<&String>, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, value)| (Some(key), value)).collect(),
        Value::Array(items) => items.iter().map(|value| (None, value)).collect(),
        Value::String(text) if text.contains('\n') => {
            let margin = format!("\n{}", " ".repeat(indent + 2));
            out.push('"');
            out.push_str(&margin);
            out.push_str(&text.replace('\n', &margin));
            out.push('"');
            return;
        }
        _ => return out.push_str(&one_line),
    };
    if indent + one_line.chars().count() <= WIDTH && !one_line.contains("\\n") {
        return out.push_str(&one_line);
    }
    let empty = entries.iter().filter(|(_, value)| is_empty(value)).count();
    let leave_out = value.is_object() && empty >= LEFT_OUT_MIN;
    let entries: Vec<_> = entries.into_iter().filter(|(_, value)| !(leave_out && is_empty(value))).collect();
    let (open, close) = if value.is_object() { ('{', '}') } else { ('[', ']') };
    out.push(open);
    for (position, (key, value)) in entries.into_iter().enumerate() {
        out.push_str(if position == 0 { "\n" } else { ",\n" });
        out.push_str(&" ".repeat(indent + 2));
        if let Some(key) = key {
            out.push_str(&format!("{}: ", Value::from(key.as_str())));
        }
        write_value(out, value, indent + 2);
    }
    if leave_out {
        out.push_str(&format!(",\n{}… and {empty} keys without a value", " ".repeat(indent + 2)));
    }
    out.push('\n');
    out.push_str(&" ".repeat(indent));
    out.push(close);
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(object) => object.values().all(is_empty),
        _ => false,
    }
}
