//! A run as an image: two bars a combination, the guided step and the VAE decode.

use super::compare::title;
use super::report::{BenchReport, Phase};
use crate::{Error, Result};
use plotters::prelude::{BLACK, Color, IntoDrawingArea, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE};
use plotters::style::IntoFont;

const WIDTH: u32 = 960;
const ROW: u32 = 52;
const TOP: u32 = 70;
/// Where the bars begin and how long the longest is; the rest is for text.
const LEFT: i32 = 330;
const LONGEST: f64 = 520.0;

/// The bars as an SVG; rows without times are left out.
///
/// # Errors
/// The drawing library fails.
pub(crate) fn svg(report: &BenchReport) -> Result<String> {
    let bars = [(Phase::Step, RGBColor(46, 110, 180)), (Phase::Decode, RGBColor(225, 140, 50))];
    let rows: Vec<_> = report.rows.iter().filter(|row| bars.iter().any(|(phase, _)| row.phases.contains_key(phase))).collect();
    let longest = rows.iter().flat_map(|row| bars.iter().filter_map(|(phase, _)| row.phases.get(phase))).map(|t| t.max).fold(0.0, f64::max);
    let length = |seconds: f64| if longest > 0.0 { (seconds / longest * LONGEST) as i32 } else { 0 };
    let failed = |e: &dyn std::fmt::Display| Error::Image(format!("the plot cannot be drawn: {e}"));

    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, TOP + ROW * rows.len() as u32 + 20)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| failed(&e))?;
        let font = |size: u32| ("sans-serif", size).into_font().color(&BLACK);
        let write = |what: String, at: (i32, i32), size: u32| area.draw(&Text::new(what, at, font(size))).map_err(|e| failed(&e));
        write(format!("sd-gen {}: seconds, median and spread", report.version), (16, 12), 18)?;
        write(report.machine.line(), (16, 38), 12)?;
        for (i, (phase, colour)) in bars.iter().enumerate() {
            let x = 640 + 140 * i as i32;
            area.draw(&Rectangle::new([(x, 14), (x + 14, 28)], colour.filled())).map_err(|e| failed(&e))?;
            write(phase.name().to_owned(), (x + 20, 14), 14)?;
        }
        for (i, row) in rows.iter().enumerate() {
            let top = (TOP + ROW * i as u32) as i32;
            write(title(row), (16, top + 14), 13)?;
            for (j, (phase, colour)) in bars.iter().enumerate() {
                let Some(timing) = row.phases.get(phase) else { continue };
                let (top, bottom) = (top + 21 * j as i32, top + 21 * j as i32 + 18);
                let bar = [(LEFT, top), (LEFT + length(timing.median).max(1), bottom)];
                area.draw(&Rectangle::new(bar, colour.filled())).map_err(|e| failed(&e))?;
                let middle = (top + bottom) / 2;
                let spread = vec![(LEFT + length(timing.min), middle), (LEFT + length(timing.max), middle)];
                area.draw(&PathElement::new(spread, BLACK)).map_err(|e| failed(&e))?;
                write(format!("{:.3}", timing.median), (LEFT + length(timing.max) + 8, top + 3), 12)?;
            }
        }
        area.present().map_err(|e| failed(&e))?;
    }
    Ok(text)
}
