//! What a section measures: rows with a baseline and a goal, and notes in words.

use std::fmt;

/// A section's result, in the order it was measured. Each row is printed at once, so that a long run shows how far it is.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) rows: Vec<Row>,
    /// What is no number: what, and how much.
    pub(crate) notes: Vec<(String, String)>,
}

/// One figure.
pub(crate) struct Row {
    pub(crate) name: String,
    /// Of `value` and `baseline`.
    pub(crate) unit: &'static str,
    /// `value` ÷ `baseline`.
    pub(crate) ratio: Option<f64>,
    pub(crate) baseline: Option<f64>,
    pub(crate) value: f64,
    /// How far the rounds of this run lie apart: largest less smallest ratio, as a part of the ratio.
    pub(crate) spread: Option<f64>,
    /// For the ratio if there is one, otherwise for the value.
    pub(crate) goal: Option<Goal>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Figures {
    pub(crate) fn new() -> Figures {
        Figures::default()
    }

    /// A ratio. `rounds`: baseline and value, measured one right after the other, because what else the machine does
    /// changes from minute to minute. The round whose ratio is the median is the one reported.
    pub(crate) fn compare(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        rounds: &[(f64, f64)],
        goal: impl Into<Option<Goal>>,
    ) {
        let mut rounds = rounds.to_vec();
        rounds.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
        let (baseline, value) = rounds[(rounds.len() - 1) / 2];
        let ratio = value / baseline;
        let ends = rounds.first().zip(rounds.last()).filter(|_| rounds.len() > 1);
        let spread = ends.map(|(low, high)| (high.1 / high.0 - low.1 / low.0) / ratio);
        self.push(Row {
            name: name.into(),
            unit,
            ratio: Some(ratio),
            baseline: Some(baseline),
            value,
            spread,
            goal: goal.into(),
        });
    }

    /// A figure that stands for itself.
    pub(crate) fn measure(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        goal: impl Into<Option<Goal>>,
    ) {
        let (name, goal) = (name.into(), goal.into());
        self.push(Row { name, unit, ratio: None, baseline: None, value, spread: None, goal });
    }

    fn push(&mut self, row: Row) {
        println!("{row}");
        self.rows.push(row);
    }
}

/// Writes down what is no number.
pub(crate) fn note(figures: &mut Figures, what: impl Into<String>, how_much: impl Into<String>) {
    let (what, how_much) = (what.into(), how_much.into());
    println!("{what}: {how_much}");
    figures.notes.push((what, how_much));
}

impl Row {
    pub(crate) fn reached(&self) -> Option<bool> {
        let reached = self.ratio.unwrap_or(self.value);
        self.goal.map(|goal| match goal {
            Goal::AtLeast(least) => reached >= least,
            Goal::AtMost(most) => reached <= most,
        })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(least) => write!(f, "≥ {least}"),
            Goal::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        if let (Some(ratio), Some(baseline)) = (self.ratio, self.baseline) {
            write!(f, "{ratio:.3} = {} ÷ ", digits(self.value))?;
            write!(f, "{} {}", digits(baseline), self.unit)?;
        } else {
            write!(f, "{} {}", digits(self.value), self.unit)?;
        }
        if let Some(spread) = self.spread {
            write!(f, " (rounds differ by {:.0} %)", spread * 100.0)?;
        }
        match (self.goal, self.reached()) {
            (Some(goal), Some(true)) => write!(f, " — goal {goal}: reached"),
            (Some(goal), _) => write!(f, " — goal {goal}: NOT reached"),
            _ => Ok(()),
        }
    }
}

/// Three or more digits that count, and none that do not.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
