//! Lists what a template can become.
//!
//! The lists follow the order of dynamicprompts: the last choice of a text changes fastest. A part that is drawn (`{~a|b}`) is drawn anew
//! for every text, and alone gives one; there it would give texts without end.

use super::evaluate::{Evaluator, TemplateScope, join, wrap};
use super::{Choice, Piece, Sampling};
use crate::{Error, Result};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Choices that are open at once, behind and within one another: nobody lists all their combinations, and the stack has an end.
const MOST_OPEN: usize = 800;

/// Whether to go on with the next text.
type Continuation = Result<ControlFlow<()>>;

/// Takes a text.
type Emit<'e, 'a> = &'e mut dyn FnMut(&mut Evaluator<'a>, String) -> Continuation;

impl<'a> Evaluator<'a> {
    pub(super) fn combine_all(&mut self, pieces: &[Piece], most: usize) -> Result<(Vec<String>, bool)> {
        self.combine(pieces, &TemplateScope::new(Sampling::Combinatorial), most)
    }

    /// The first `most` texts of a sequence, and whether there are more.
    pub(super) fn combine(&mut self, pieces: &[Piece], scope: &TemplateScope, most: usize) -> Result<(Vec<String>, bool)> {
        let mut texts = Vec::new();
        let mut cut = false;
        let _ = self.sequence(pieces, scope, &mut |_, text| {
            cut = texts.len() >= most;
            if cut {
                return Ok(ControlFlow::Break(()));
            }
            texts.push(text);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((texts, cut))
    }

    fn opened(&mut self, work: impl FnOnce(&mut Self) -> Continuation) -> Continuation {
        self.work()?;
        self.open += 1;
        if self.open > MOST_OPEN {
            return Err(Error::Input("`dynamic-prompts` all: the template has too many choices to list all of it; take fewer".into()));
        }
        let flow = work(self);
        self.open -= 1;
        flow
    }

    fn sequence(&mut self, pieces: &[Piece], scope: &TemplateScope, emit: Emit<'_, 'a>) -> Continuation {
        let scope = self.assign(pieces, scope)?;
        self.rest(pieces, &scope, "", emit)
    }

    /// All texts of `pieces` behind `before`.
    fn rest(&mut self, pieces: &[Piece], scope: &TemplateScope, before: &str, emit: Emit<'_, 'a>) -> Continuation {
        let mut before = before.to_owned();
        for (i, piece) in pieces.iter().enumerate() {
            let after = &pieces[i + 1..];
            match piece {
                Piece::Text(text) => before.push_str(text),
                Piece::Assign { .. } => {}
                _ if scope.of(piece).sampling != Sampling::Combinatorial => {
                    return self.opened(|all| {
                        all.rest(after, scope, "", &mut |all, rest| {
                            let drawn = all.draw_piece(piece, scope)?;
                            emit(all, format!("{before}{drawn}{rest}"))
                        })
                    });
                }
                _ => {
                    return self
                        .opened(|all| all.piece(piece, scope, &mut |all, text| all.rest(after, scope, &format!("{before}{text}"), emit)));
                }
            }
        }
        emit(self, before)
    }

    fn piece(&mut self, piece: &Piece, scope: &TemplateScope, emit: Emit<'_, 'a>) -> Continuation {
        match piece {
            Piece::Text(text) => emit(self, text.clone()),
            Piece::Assign { .. } => emit(self, String::new()),
            Piece::Choice(choice) => self.choice(choice, &scope.deeper("a choice")?, emit),
            Piece::Variable { name, default } => {
                let (value, scope) = self.variable(name, default.as_deref(), scope)?;
                self.sequence(&value, &scope, emit)
            }
            Piece::Wrap { wrapper, inner } => {
                let scope = scope.deeper("a wrapper")?;
                self.sequence(wrapper, &scope, &mut |all, wrapper| {
                    all.sequence(inner, &scope, &mut |all, text| emit(all, wrap(&wrapper, &text)))
                })
            }
            Piece::Wildcard { path, variables, .. } => {
                let (name, scope) = self.wildcard(path, variables, scope)?;
                let values = self.values(&name)?;
                if values.is_empty() {
                    let text = self.without_file(&name);
                    return emit(self, text);
                }
                for value in values.iter() {
                    if self.sequence(value, &scope, emit)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    fn choice(&mut self, choice: &Choice, scope: &TemplateScope, emit: Emit<'_, 'a>) -> Continuation {
        if let Some((expanded, scope)) = self.expanded(choice, scope)? {
            return self.choice(&expanded, &scope, emit);
        }
        let mut seen: HashSet<Vec<String>> = HashSet::new();
        let mut take = |all: &mut Self, order: &[usize]| {
            all.product(choice, order, scope, &mut Vec::new(), &mut |all, texts| {
                all.work()?;
                let distinct = texts.iter().enumerate().all(|(i, text)| !texts[..i].contains(text));
                match distinct && seen.insert(texts.to_vec()) {
                    true => emit(all, join(texts, &choice.separator)),
                    false => Ok(ControlFlow::Continue(())),
                }
            })
        };
        self.orders(choice, &mut take)
    }

    /// The ways to take `least` to `most` of the options, the fewest first. Of equal options one is taken.
    pub(super) fn orders(&mut self, choice: &Choice, take: &mut dyn FnMut(&mut Self, &[usize]) -> Continuation) -> Continuation {
        let count = choice.options.len();
        // Options are compared once: they are whole trees, and orders are many.
        let first_equal = |(_, option): &(f64, Vec<Piece>)| choice.options.iter().position(|(_, other)| other == option).unwrap_or(0);
        let kinds: Vec<usize> = choice.options.iter().map(first_equal).collect();
        for length in choice.least.min(count)..=choice.most.min(count) {
            if self.longer_orders(&kinds, length, &mut Vec::new(), take)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn longer_orders(
        &mut self,
        kinds: &[usize],
        length: usize,
        taken: &mut Vec<usize>,
        take: &mut dyn FnMut(&mut Self, &[usize]) -> Continuation,
    ) -> Continuation {
        if taken.len() == length {
            return take(self, taken);
        }
        for (option, kind) in kinds.iter().enumerate() {
            if taken.iter().any(|&other| kinds[other] == *kind) {
                continue;
            }
            taken.push(option);
            let flow = self.opened(|all| all.longer_orders(kinds, length, taken, take))?;
            taken.pop();
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// All texts of the options of `order`, the last of which changes fastest.
    fn product(
        &mut self,
        choice: &Choice,
        order: &[usize],
        scope: &TemplateScope,
        texts: &mut Vec<String>,
        emit: &mut dyn FnMut(&mut Self, &[String]) -> Continuation,
    ) -> Continuation {
        let Some((&first, after)) = order.split_first() else { return emit(self, texts) };
        self.opened(|all| {
            all.sequence(&choice.options[first].1, scope, &mut |all, text| {
                texts.push(text);
                let flow = all.product(choice, after, scope, texts, emit);
                texts.pop();
                flow
            })
        })
    }
}
