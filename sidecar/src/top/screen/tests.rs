use ratatui::{Terminal, backend::TestBackend};

use super::*;

fn flow(webhook: &str, sent: i64, failed: i64, p99_ms: i32, pending: i64) -> Flow {
    Flow {
        webhook: webhook.to_owned(),
        state: "ok".to_owned(),
        sent,
        failed,
        p50_ms: Some(p99_ms / 2),
        p99_ms: Some(p99_ms),
        pending,
        ..Flow::default()
    }
}

fn snapshot() -> Snapshot {
    let mut stuck = flow("Légal 通知", 0, 0, 0, 12);
    (stuck.state, stuck.p50_ms, stuck.p99_ms) = ("stuck".to_owned(), None, None);
    stuck.reason = "said \u{1b}[31m\nred".to_owned();
    stuck.oldest_waiting_seconds = Some(3.0 * 3600.0 + 125.0);
    let webhooks = vec![flow("Team", 300, 0, 120, 0), flow("CRM", 60, 15, 15_000, 7), stuck];
    let mut total = flow("", 360, 15, 900, 19);
    (total.state, total.reason, total.in_flight) = ("running".to_owned(), "2 sidecars: a, b".to_owned(), 3);
    Snapshot { total, webhooks }
}

fn lines(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
        .collect()
}

fn press(screen: &mut Screen, code: KeyCode) -> Action {
    screen.on_key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn names(screen: &mut Screen) -> Vec<String> {
    let shown = lines(screen, 160, 20);
    shown[4..].iter().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).take(3).collect()
}

#[test]
fn a_picture_says_what_flows_in_total_and_per_webhook() {
    let mut screen = Screen::new(30, snapshot());
    let shown = lines(&mut screen, 160, 10);
    assert_eq!(shown[0], "orbhook top  2 sidecars: a, b");
    assert_eq!(
        shown[1],
        "12.0 requests/s, 4.2 % failed, p50 450 ms, p99 900 ms over 30 s; 3 in flight, 19 pending, oldest waiting -"
    );
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(words(&shown[3]), "webhook state req/s failed p50 p99 in flight pending waiting why");
    assert_eq!(words(&shown[4]), "Team ok 10.0 0 % 60 ms 120 ms 0 0");
    assert_eq!(words(&shown[5]), "CRM ok 2.00 25.0 % 7500 ms 15.0 s 0 7");
    assert!(
        shown[6].starts_with("Légal 通") && shown[6].contains("stuck") && shown[6].contains("3 h 2 min"),
        "{shown:?}"
    );
    assert!(shown[9].starts_with("q quit"), "{shown:?}");
}

#[test]
fn text_from_a_receiver_cannot_move_the_cursor_or_break_the_line() {
    let mut screen = Screen::new(30, snapshot());
    let text = screen.draw_text(200);
    assert!(text.contains("said \u{fffd}[31m red"), "{text}");
    assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
}

#[test]
fn a_pipe_gets_every_webhook_and_no_keys() {
    let mut many = snapshot();
    many.webhooks = (0..300).map(|number| flow(&format!("hook{number}"), 1, 0, 1, 0)).collect();
    let text = Screen::new(30, many).draw_text(200);
    assert!(text.contains("hook0 ") && text.contains("hook299 "), "{text}");
    assert!(!text.contains("q quit"), "{text}");
    assert_eq!(text.lines().count(), 304);
}

#[test]
fn it_ends_with_q_escape_and_control_c_and_with_nothing_else() {
    let mut screen = Screen::new(30, snapshot());
    for code in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(press(&mut screen, code), Action::Quit);
    }
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.on_key(control_c), Action::Quit);
    for code in [KeyCode::Char('c'), KeyCode::Char('x'), KeyCode::Enter, KeyCode::F(1), KeyCode::Down] {
        assert_eq!(press(&mut screen, code), Action::Stay);
    }
}

#[test]
fn s_sorts_by_time_failures_queue_and_wait_in_turn() {
    let mut screen = Screen::new(30, snapshot());
    assert_eq!(names(&mut screen), ["Team", "CRM", "Légal"]);
    for expected in [
        ["CRM", "Team", "Légal"],
        ["CRM", "Team", "Légal"],
        ["Légal", "CRM", "Team"],
        ["Légal", "Team", "CRM"],
        ["Team", "CRM", "Légal"],
    ] {
        press(&mut screen, KeyCode::Char('s'));
        assert_eq!(names(&mut screen), expected);
    }
}

#[test]
fn it_scrolls_to_the_last_row_and_not_beyond_also_when_webhooks_go() {
    let mut many = snapshot();
    many.webhooks = (0..50).map(|number| flow(&format!("hook{number}"), 1, 0, 1, 0)).collect();
    let mut screen = Screen::new(30, many);
    lines(&mut screen, 120, 15);
    press(&mut screen, KeyCode::End);
    let shown = lines(&mut screen, 120, 15);
    assert!(shown[13].starts_with("hook49"), "{shown:?}");
    press(&mut screen, KeyCode::Up);
    assert!(lines(&mut screen, 120, 15)[13].starts_with("hook48"));
    screen.take_in(snapshot());
    assert!(lines(&mut screen, 120, 15)[4].starts_with("Team"));
}

#[test]
fn trouble_is_shown_above_what_is_old_and_goes_when_it_is_over() {
    let mut screen = Screen::new(30, snapshot());
    screen.trouble("lost the connection to PostgreSQL: gone".to_owned());
    let shown = lines(&mut screen, 120, 10);
    assert_eq!(shown[0], "orbhook top  what is below is old: lost the connection to PostgreSQL: gone");
    assert!(shown[4].starts_with("Team"));
    screen.take_in(snapshot());
    assert_eq!(lines(&mut screen, 120, 10)[0], "orbhook top  2 sidecars: a, b");
}

#[test]
fn p_holds_the_picture() {
    let mut screen = Screen::new(30, snapshot());
    press(&mut screen, KeyCode::Char('p'));
    screen.take_in(Snapshot::default());
    assert_eq!(names(&mut screen), ["Team", "CRM", "Légal"]);
    press(&mut screen, KeyCode::Char('p'));
    screen.take_in(Snapshot::default());
    assert_eq!(names(&mut screen).len(), 1, "only the line of keys");
}

#[test]
fn no_size_of_a_terminal_is_too_small_or_too_large() {
    let mut screen = Screen::new(30, snapshot());
    for (width, height) in [(1, 1), (2, 3), (10, 2), (40, 4), (80, 24), (500, 200)] {
        lines(&mut screen, width, height);
    }
}
