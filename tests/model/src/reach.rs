use std::collections::HashMap;

use stateright::Model;

use crate::{Protocol, State};

/// What a walk through every reachable state found.
#[derive(Debug)]
pub struct Reached {
    /// States there are.
    pub states: usize,
    /// States in which everything is delivered.
    pub drained: usize,
    /// A state from which ordinary steps alone never lead to a drained one.
    pub stuck: Option<State>,
}

/// Visits every state and asks of each whether everything can still be delivered without a further fault.
///
/// With steps that come in a fair order, "can" is "will": where ordinary steps end up going in circles, every state of the
/// circle can reach every other, so a circle without a drained state would be one that cannot reach any.
pub fn explore(model: &Protocol) -> Reached {
    let mut numbers: Numbers = HashMap::new();
    let mut states: Vec<State> = Vec::new();
    // From where ordinary steps lead here, as (to, from).
    let mut ways_back: Vec<(u32, u32)> = Vec::new();
    for state in model.init_states() {
        number(state, &mut numbers, &mut states);
    }
    let mut steps = Vec::new();
    let mut next = 0;
    while let Some(state) = states.get(next).cloned() {
        steps.clear();
        model.actions(&state, &mut steps);
        for step in &steps {
            let Some(after) = model.next_state(&state, *step) else { continue };
            let to = number(after, &mut numbers, &mut states);
            if step.is_ordinary() {
                ways_back.push((to, u32::try_from(next).unwrap_or(u32::MAX)));
            }
        }
        next += 1;
    }
    drop(numbers);
    ways_back.sort_unstable();

    let mut can_drain: Vec<bool> = states.iter().map(State::is_drained).collect();
    let drained = can_drain.iter().filter(|can| **can).count();
    let mut todo: Vec<u32> =
        (0..).zip(&can_drain).filter(|(_, can)| **can).map(|(number, _)| number).collect();
    while let Some(to) = todo.pop() {
        let begin = ways_back.partition_point(|way| way.0 < to);
        for (_, from) in ways_back[begin..].iter().take_while(|way| way.0 == to) {
            let can = &mut can_drain[*from as usize];
            if !*can {
                *can = true;
                todo.push(*from);
            }
        }
    }
    let stuck = can_drain.iter().position(|can| !can).map(|number| states[number].clone());
    Reached { states: states.len(), drained, stuck }
}

/// Numbers of states by their packed form.
type Numbers = HashMap<u64, u32>;

fn number(state: State, numbers: &mut Numbers, states: &mut Vec<State>) -> u32 {
    *numbers.entry(state.packed()).or_insert_with(|| {
        states.push(state);
        u32::try_from(states.len() - 1).unwrap_or(u32::MAX)
    })
}
