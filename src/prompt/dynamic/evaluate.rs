//! Draws one text of a template.

use super::{Choice, Piece, Sampling, Wildcards, parse};
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::rc::Rc;

/// Choices, wildcards and variables within one another.
const DEEPEST: usize = 200;

/// Pieces that are looked at before the work is given up.
const MOST_WORK: usize = 500_000;

/// Orders that are told apart for `{@2$$a|b|c}`.
const MOST_ORDERS: usize = 100_000;

/// What holds where a piece stands.
#[derive(Debug, Clone)]
pub(super) struct TemplateScope {
    pub(super) sampling: Sampling,
    variables: Rc<HashMap<String, Rc<Vec<Piece>>>>,
    depth: usize,
}

impl TemplateScope {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self { sampling, variables: Rc::default(), depth: 0 }
    }

    /// The sampling of a piece. What is drawn stays drawn, whatever is said inside.
    pub(super) fn of(&self, piece: &Piece) -> Self {
        let own = match piece {
            Piece::Choice(Choice { sampling, .. }) | Piece::Wildcard { sampling, .. } => *sampling,
            _ => None,
        };
        match own {
            Some(Sampling::Combinatorial) | None => self.clone(),
            Some(sampling) => Self { sampling, ..self.clone() },
        }
    }

    pub(super) fn deeper(&self, what: &str) -> Result<Self> {
        if self.depth >= DEEPEST {
            return Err(Error::Input(format!("`dynamic-prompts`: {what} leads to itself, or is nested deeper than {DEEPEST} levels")));
        }
        Ok(Self { depth: self.depth + 1, ..self.clone() })
    }

    fn with(&self, variables: impl IntoIterator<Item = (String, Rc<Vec<Piece>>)>) -> Self {
        let mut all = (*self.variables).clone();
        all.extend(variables);
        Self { variables: Rc::new(all), ..self.clone() }
    }
}

pub(super) struct Evaluator<'a> {
    wildcards: &'a Wildcards,
    random: SplitMix,
    index: usize,
    work: usize,
    /// Choices that are being listed.
    pub(super) open: usize,
    values: HashMap<String, Rc<Vec<Vec<Piece>>>>,
    /// Wildcards without a file.
    pub(super) missing: Vec<String>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(wildcards: &'a Wildcards, seed: u64, index: usize) -> Self {
        Self { wildcards, random: SplitMix(seed), index, work: 0, open: 0, values: HashMap::new(), missing: Vec::new() }
    }

    pub(super) fn draw_all(&mut self, pieces: &[Piece]) -> Result<String> {
        self.draw(pieces, &TemplateScope::new(Sampling::Random))
    }

    /// Counts the work.
    pub(super) fn work(&mut self) -> Result<()> {
        self.work += 1;
        match self.work > MOST_WORK {
            true => {
                Err(Error::Input("`dynamic-prompts`: the template stands for more texts than can be looked at; take fewer choices".into()))
            }
            false => Ok(()),
        }
    }

    /// One text of a sequence.
    pub(super) fn draw(&mut self, pieces: &[Piece], scope: &TemplateScope) -> Result<String> {
        let scope = self.assign(pieces, scope)?;
        let mut text = String::new();
        for piece in pieces {
            text.push_str(&self.draw_piece(piece, &scope)?);
        }
        Ok(text)
    }

    /// The first text of all, or one that is drawn.
    fn sample(&mut self, pieces: &[Piece], scope: &TemplateScope) -> Result<String> {
        match scope.sampling {
            Sampling::Combinatorial => Ok(self.combine(pieces, scope, 1)?.0.pop().unwrap_or_default()),
            Sampling::Random | Sampling::Cyclical => self.draw(pieces, scope),
        }
    }

    /// The scope with the variables that a sequence sets, wherever in it they are set.
    pub(super) fn assign(&mut self, pieces: &[Piece], scope: &TemplateScope) -> Result<TemplateScope> {
        let mut set: Vec<(String, Rc<Vec<Piece>>)> = Vec::new();
        for piece in pieces {
            let Piece::Assign { name, value, keep, immediate } = piece else { continue };
            let value = match scope.variables.get(name) {
                Some(known) if *keep => known.clone(),
                _ if *immediate => Rc::new(vec![Piece::Text(self.sample(value, scope)?)]),
                _ => Rc::new(value.clone()),
            };
            set.push((name.clone(), value));
        }
        Ok(if set.is_empty() { scope.clone() } else { scope.with(set) })
    }

    pub(super) fn draw_piece(&mut self, piece: &Piece, scope: &TemplateScope) -> Result<String> {
        self.work()?;
        let scope = &scope.of(piece);
        match piece {
            Piece::Text(text) => Ok(text.clone()),
            Piece::Assign { .. } => Ok(String::new()),
            Piece::Choice(choice) => self.draw_choice(choice, &scope.deeper("a choice")?),
            Piece::Variable { name, default } => {
                let (value, scope) = self.variable(name, default.as_deref(), scope)?;
                self.draw(&value, &scope)
            }
            Piece::Wrap { wrapper, inner } => {
                let scope = scope.deeper("a wrapper")?;
                let wrapper = self.draw(wrapper, &scope)?;
                Ok(wrap(&wrapper, &self.draw(inner, &scope)?))
            }
            Piece::Wildcard { path, variables, .. } => {
                let (name, scope) = self.wildcard(path, variables, scope)?;
                let values = self.values(&name)?;
                if values.is_empty() {
                    return Ok(self.without_file(&name));
                }
                let chosen = match scope.sampling {
                    Sampling::Cyclical => self.index % values.len(),
                    _ => self.random.below(values.len()),
                };
                self.draw(&values[chosen], &scope)
            }
        }
    }

    fn draw_choice(&mut self, choice: &Choice, scope: &TemplateScope) -> Result<String> {
        if let Some((expanded, scope)) = self.expanded(choice, scope)? {
            return self.draw_choice(&expanded, &scope);
        }
        if let [(_, only)] = &choice.options[..] {
            return self.draw(only, scope);
        }
        let count = choice.options.len();
        let (least, most) = (choice.least.min(count), choice.most.min(count));
        if scope.sampling == Sampling::Cyclical {
            let mut orders: Vec<Vec<usize>> = Vec::new();
            let _ = self.orders(choice, &mut |_, order| {
                orders.push(order.to_vec());
                Ok(if orders.len() < MOST_ORDERS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            let Some(order) = orders.get(self.index % orders.len().max(1)) else { return Ok(String::new()) };
            let texts: Result<Vec<String>> = order.iter().map(|&option| self.draw(&choice.options[option].1, scope)).collect();
            return Ok(join(&texts?, &choice.separator));
        }
        let taken = least + self.random.below(most - least + 1);
        let mut left: Vec<usize> = (0..count).collect();
        let mut texts = Vec::with_capacity(taken);
        for _ in 0..taken {
            let total: f64 = left.iter().map(|&option| choice.options[option].0).sum();
            if total <= 0.0 {
                return Err(Error::Input("`dynamic-prompts`: all options that are left in a {…|…} have the weight 0".into()));
            }
            let mut point = self.random.unit() * total;
            let place = left.iter().position(|&option| {
                point -= choice.options[option].0;
                point < 0.0
            });
            // Rounding may leave a last bit over: then it is the last option that has a weight.
            let place = place.or_else(|| left.iter().rposition(|&option| choice.options[option].0 > 0.0)).unwrap_or_default();
            texts.push(self.draw(&choice.options[left.remove(place)].1, scope)?);
        }
        Ok(join(&texts, &choice.separator))
    }

    /// `{2$$__file__}` chooses among the lines of the file.
    pub(super) fn expanded(&mut self, choice: &Choice, scope: &TemplateScope) -> Result<Option<(Choice, TemplateScope)>> {
        let [(_, only)] = &choice.options[..] else { return Ok(None) };
        let [Piece::Wildcard { path, variables, .. }] = &only[..] else { return Ok(None) };
        let (name, scope) = self.wildcard(path, variables, scope)?;
        let values = self.values(&name)?;
        let mut options: Vec<_> = values.iter().map(|value| (1.0, value.clone())).collect();
        if options.is_empty() {
            options.push((1.0, vec![Piece::Text(self.without_file(&name))]));
        }
        let (least, most) = (choice.least.min(options.len()), choice.most.min(options.len()));
        Ok(Some((Choice { options, least, most, separator: choice.separator.clone(), sampling: None }, scope)))
    }

    pub(super) fn variable(&self, name: &str, default: Option<&[Piece]>, scope: &TemplateScope) -> Result<(Rc<Vec<Piece>>, TemplateScope)> {
        let value = scope.variables.get(name).cloned().or(default.map(|pieces| Rc::new(pieces.to_vec())));
        let unknown = || Error::Input(format!("`dynamic-prompts`: the variable ${{{name}}} has no value; set it with ${{{name}=…}}"));
        Ok((value.ok_or_else(unknown)?, scope.deeper(&format!("the variable ${{{name}}}"))?))
    }

    /// The path of a wildcard, and the scope of its lines.
    pub(super) fn wildcard(
        &mut self,
        path: &[Piece],
        variables: &[(String, Vec<Piece>)],
        scope: &TemplateScope,
    ) -> Result<(String, TemplateScope)> {
        let inside = scope.deeper("a wildcard")?;
        // Within a path a variable without a value is its name.
        let mut name = String::new();
        for piece in path {
            match piece {
                Piece::Variable { name: variable, default: None } if !scope.variables.contains_key(variable) => name.push_str(variable),
                Piece::Variable { .. } => name.push_str(self.sample(std::slice::from_ref(piece), &inside)?.trim()),
                _ => name.push_str(&self.sample(std::slice::from_ref(piece), &inside)?),
            }
        }
        let scope = match variables {
            [] => inside,
            _ => inside.with(variables.iter().map(|(name, value)| (name.clone(), Rc::new(value.clone())))),
        };
        Ok((name, scope))
    }

    /// The lines of a wildcard, read as templates.
    pub(super) fn values(&mut self, name: &str) -> Result<Rc<Vec<Vec<Piece>>>> {
        if let Some(known) = self.values.get(name) {
            return Ok(known.clone());
        }
        let lines = self.wildcards.values(name)?;
        let parse = |line: &String| parse::parse(line).map_err(|error| Error::Input(format!("a line of the wildcard __{name}__: {error}")));
        let values = Rc::new(lines.iter().map(parse).collect::<Result<Vec<_>>>()?);
        self.values.insert(name.to_owned(), values.clone());
        Ok(values)
    }

    pub(super) fn without_file(&mut self, name: &str) -> String {
        if !self.missing.iter().any(|known| known == name) {
            self.missing.push(name.to_owned());
        }
        format!("__{name}__")
    }
}

/// The texts with the separator between them; at the ends it goes, where an empty text has left it.
pub(super) fn join(texts: &[String], separator: &str) -> String {
    if let [only] = texts {
        return only.clone();
    }
    let joined = texts.join(separator);
    let joined = joined.strip_prefix(separator).unwrap_or(&joined);
    joined.strip_suffix(separator).unwrap_or(joined).to_owned()
}

/// The wrapper with the text at the place of its dots.
pub(super) fn wrap(wrapper: &str, inner: &str) -> String {
    const DOTS: &[char] = &['\u{1801}', '\u{2026}', '\u{22ee}', '\u{22ef}', '\u{22f0}', '\u{22f1}', '\u{fe19}'];
    let (start, run): (usize, &[char]) = match (wrapper.find(DOTS), wrapper.find("...")) {
        (Some(dots), ascii) if ascii.is_none_or(|ascii| dots < ascii) => (dots, DOTS),
        (_, Some(ascii)) => (ascii, &['.']),
        _ => return format!("{wrapper}{inner}"),
    };
    format!("{}{inner}{}", &wrapper[..start], wrapper[start..].trim_start_matches(run))
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", figure 14.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count.saturating_sub(1))
    }
}
