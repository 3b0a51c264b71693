//! What `orbhook top` shows, and what its keys do. Pure: snapshots and keys come in, a picture goes out.

use ratatui::{
    Frame,
    buffer::Buffer,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table, Widget},
};

use crate::clean::clean;

/// Longest name and reason that are taken in; the screen cuts them further.
const TEXT_BYTES_MAX: usize = 400;

/// A quarter of the screen, but not less than tells names apart, nor more than most names need.
const NAME_WIDTH_MIN: u16 = 12;
const NAME_WIDTH_MAX: u16 = 50;

/// One look at the database.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) total: Flow,
    /// The busiest first.
    pub(super) webhooks: Vec<Flow>,
}

/// A row of `orbhook.top`.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    pub(super) webhook: String,
    pub(super) state: String,
    pub(super) reason: String,
    /// Requests that began within the window and are over.
    pub(super) sent: i64,
    pub(super) failed: i64,
    pub(super) p50_ms: Option<i32>,
    pub(super) p99_ms: Option<i32>,
    pub(super) in_flight: i64,
    pub(super) pending: i64,
    pub(super) oldest_waiting_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Stay,
    Quit,
}

/// What `s` goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Busiest,
    Slowest,
    Failing,
    Backlog,
    Waiting,
}

/// Everything that is drawn.
pub(super) struct Screen {
    window_seconds: i32,
    snapshot: Snapshot,
    /// Why the latest look brought nothing; what is shown is older.
    trouble: Option<String>,
    order: Order,
    is_held: bool,
    first_row: usize,
    /// Rows the latest picture had room for.
    page: usize,
    /// Columns it has for a webhook's name.
    name_width: u16,
}

impl Screen {
    pub(super) fn new(window_seconds: i32, snapshot: Snapshot) -> Screen {
        let mut screen = Screen {
            window_seconds,
            snapshot: Snapshot::default(),
            trouble: None,
            order: Order::Busiest,
            is_held: false,
            first_row: 0,
            page: 1,
            name_width: NAME_WIDTH_MIN,
        };
        screen.take_in(snapshot);
        screen
    }

    pub(super) fn take_in(&mut self, snapshot: Snapshot) {
        self.trouble = None;
        if !self.is_held {
            self.snapshot = snapshot;
        }
    }

    pub(super) fn trouble(&mut self, reason: String) {
        self.trouble = Some(reason);
    }

    pub(super) fn on_key(&mut self, key: KeyEvent) -> Action {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if is_control => return Action::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Char('s') => {
                self.order = self.order.next();
                self.first_row = 0;
            }
            KeyCode::Char('p' | ' ') => self.is_held = !self.is_held,
            KeyCode::Up | KeyCode::Char('k') => self.first_row = self.first_row.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.first_row += 1,
            KeyCode::PageUp => self.first_row = self.first_row.saturating_sub(self.page),
            KeyCode::PageDown => self.first_row += self.page,
            KeyCode::Home => self.first_row = 0,
            KeyCode::End => self.first_row = self.snapshot.webhooks.len(),
            _ => {}
        }
        Action::Stay
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        self.draw_into(area, frame.buffer_mut());
    }

    /// One snapshot as lines, for a pipe: every webhook, without colours and keys.
    pub(super) fn draw_text(&mut self, width: u16) -> String {
        let rows = self.snapshot.webhooks.len().min(usize::from(u16::MAX - 10));
        let area = Rect::new(0, 0, width, u16::try_from(rows).unwrap_or(u16::MAX - 10) + 5);
        let mut buffer = Buffer::empty(area);
        self.draw_into(area, &mut buffer);
        let lines: Vec<String> = (0..area.height - 1)
            .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
            .collect();
        lines.join("\n") + "\n"
    }

    fn draw_into(&mut self, area: Rect, buffer: &mut Buffer) {
        let [head, rest] = Layout::vertical([Constraint::Length(3), Constraint::Min(0)]).areas(area);
        let [body, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(rest);
        self.name_width = (area.width / 4).clamp(NAME_WIDTH_MIN, NAME_WIDTH_MAX);
        self.page = usize::from(body.height.saturating_sub(1)).max(1);
        self.first_row = self.first_row.min(self.snapshot.webhooks.len().saturating_sub(self.page));
        for (line, y) in self.head().into_iter().zip(head.y..head.bottom()) {
            line.render(Rect { y, height: 1, ..head }, buffer);
        }
        self.table().render(body, buffer);
        self.foot().render(foot, buffer);
    }

    fn head(&self) -> [Line<'_>; 2] {
        let total = &self.snapshot.total;
        let style = match total.state.as_str() {
            "running" => Style::new().fg(Color::Green),
            _ => Style::new().fg(Color::Red),
        };
        let first = match &self.trouble {
            Some(reason) => Line::styled(
                format!("orbhook top  what is below is old: {}", printable(reason)),
                Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
            ),
            None => Line::from(vec![
                Span::styled("orbhook top  ", Style::new().add_modifier(Modifier::BOLD)),
                Span::styled(printable(&total.reason), style),
            ]),
        };
        let second = Line::from(format!(
            "{} requests/s, {} failed, p50 {}, p99 {} over {} s; {} in flight, {} pending, oldest waiting {}",
            per_second(total.sent, self.window_seconds),
            or_dash(percent(total.failed, total.sent)),
            or_dash(milliseconds(total.p50_ms)),
            or_dash(milliseconds(total.p99_ms)),
            self.window_seconds,
            total.in_flight,
            total.pending,
            or_dash(total.oldest_waiting_seconds.map(span)),
        ));
        [first, second]
    }

    fn table(&self) -> Table<'_> {
        let widths = [
            Constraint::Length(self.name_width),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Fill(1),
        ];
        let titles =
            ["webhook", "state", "req/s", "failed", "p50", "p99", "in flight", "pending", "waiting", "why"];
        let header = Row::new(titles.iter().enumerate().map(|(column, title)| match column {
            2..=8 => right((*title).to_owned()),
            _ => Cell::from(*title),
        }))
        .style(Style::new().add_modifier(Modifier::REVERSED));
        let rows = self.ordered().into_iter().skip(self.first_row).map(|flow| {
            Row::new(vec![
                Cell::from(printable(&flow.webhook)),
                Cell::from(flow.state.as_str()).style(Style::new().fg(state_color(&flow.state))),
                right(per_second(flow.sent, self.window_seconds)),
                right(percent(flow.failed, flow.sent).unwrap_or_default()),
                right(milliseconds(flow.p50_ms).unwrap_or_default()),
                right(milliseconds(flow.p99_ms).unwrap_or_default()),
                right(flow.in_flight.to_string()),
                right(flow.pending.to_string()),
                right(flow.oldest_waiting_seconds.map(span).unwrap_or_default()),
                Cell::from(printable(&flow.reason)),
            ])
        });
        Table::new(rows, widths).header(header).column_spacing(1)
    }

    fn foot(&self) -> Line<'_> {
        let held = if self.is_held { "  held, p goes on" } else { "  p hold" };
        let shown = self.snapshot.webhooks.len();
        Line::styled(
            format!("q quit  s sort: {}{held}  ↑↓ scroll  {shown} webhooks", self.order.as_str()),
            Style::new().add_modifier(Modifier::DIM),
        )
    }

    /// A stable sort: what is equal stays the busiest first.
    fn ordered(&self) -> Vec<&Flow> {
        let mut flows: Vec<&Flow> = self.snapshot.webhooks.iter().collect();
        match self.order {
            Order::Busiest => {}
            Order::Slowest => flows.sort_by_key(|flow| std::cmp::Reverse(flow.p99_ms)),
            Order::Failing => flows.sort_by(|a, b| failed_share(b).total_cmp(&failed_share(a))),
            Order::Backlog => flows.sort_by_key(|flow| std::cmp::Reverse(flow.pending)),
            Order::Waiting => flows.sort_by(|a, b| {
                let waiting = |flow: &Flow| flow.oldest_waiting_seconds.unwrap_or(-1.0);
                waiting(b).total_cmp(&waiting(a))
            }),
        }
        flows
    }
}

impl Order {
    fn next(self) -> Order {
        match self {
            Order::Busiest => Order::Slowest,
            Order::Slowest => Order::Failing,
            Order::Failing => Order::Backlog,
            Order::Backlog => Order::Waiting,
            Order::Waiting => Order::Busiest,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Order::Busiest => "busiest",
            Order::Slowest => "slowest (p99)",
            Order::Failing => "failing most",
            Order::Backlog => "longest queue",
            Order::Waiting => "waiting longest",
        }
    }
}

fn state_color(state: &str) -> Color {
    match state {
        "ok" => Color::Green,
        "failing" | "stuck" => Color::Red,
        "quiet" => Color::Yellow,
        _ => Color::DarkGray,
    }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// Reasons quote receivers, and an escape sequence would be acted on.
fn printable(text: &str) -> String {
    clean(text.as_bytes(), TEXT_BYTES_MAX).0.replace(['\n', '\t'], " ")
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn failed_share(flow: &Flow) -> f64 {
    if flow.sent == 0 { -1.0 } else { flow.failed as f64 / flow.sent as f64 }
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn per_second(sent: i64, window_seconds: i32) -> String {
    let rate = sent as f64 / f64::from(window_seconds);
    match rate {
        _ if sent == 0 => "0".to_owned(),
        ..10.0 => format!("{rate:.2}"),
        ..1000.0 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn percent(failed: i64, sent: i64) -> Option<String> {
    (sent > 0).then(|| {
        let percent = 100.0 * failed as f64 / sent as f64;
        if failed == 0 || failed == sent { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
    })
}

fn milliseconds(ms: Option<i32>) -> Option<String> {
    ms.map(|ms| if ms < 10_000 { format!("{ms} ms") } else { format!("{:.1} s", f64::from(ms) / 1000.0) })
}

/// A time span in its two largest units.
fn span(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a negative or endless span is shown as none or the longest"
    )]
    let seconds = seconds.max(0.0) as i64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests;
