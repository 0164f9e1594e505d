//! Draws figures: lines along a size, or bars side by side. The background is white, so
//! that the page may be light or dark.

use std::{fmt::Display, io, ops::Range, path::Path};

use plotters::{
    coord::{
        Shift,
        ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::table;

const SIZE: (u32, u32) = (840, 440);

/// Height of the title and legend.
const HEAD: i32 = 70;

/// Distance from one bar to the next, in pixels; a bar takes two thirds of it.
const BAR: i32 = 26;

/// Space for the names of bars.
const NAMES: i32 = 290;

/// Space for the values of bars.
const VALUES: i32 = 110;

const FONT: &str = "Helvetica, Arial, sans-serif";

/// Approximate width of a letter of the legend.
const LETTER: f64 = 6.6;

/// Distinguishable with red-green colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How values are spaced along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero, evenly spaced.
    Linear,
    /// Every decade equally wide.
    Logarithmic,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
        }
    }

    /// Round numbers from below the smallest to above the largest value.
    fn ticks(self, values: &[f64]) -> Vec<f64> {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(0.0, f64::max);
        match self {
            Self::Linear => {
                let step = round_up(greatest / 5.0);
                let count = (greatest / step).ceil();
                let nth = |n: u32| f64::from(n) * step;
                (0..)
                    .map(nth)
                    .take_while(|tick| *tick <= count * step)
                    .collect()
            }
            Self::Logarithmic => {
                let lowest = least.log10().floor();
                let decades = (0..).map(|n: u8| 10_f64.powf(lowest + f64::from(n)));
                let decades = decades.take_while(|decade| *decade <= greatest);
                let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0, 10.0].map(|n| n * decade));
                let mut ticks: Vec<f64> = ticks.collect();
                ticks.dedup();
                let first = ticks.iter().rposition(|tick| *tick <= least).unwrap_or(0);
                let last = ticks.iter().position(|tick| *tick >= greatest);
                let last = last.unwrap_or(ticks.len().saturating_sub(1));
                ticks
                    .get(first..=last)
                    .map(<[f64]>::to_vec)
                    .unwrap_or_default()
            }
        }
    }
}

/// From its first tick to its last. If there is only one, it is in the middle.
struct Axis {
    scale: Scale,
    ticks: Vec<f64>,
}

impl Axis {
    fn ends(&self) -> (f64, f64) {
        let place = |tick: Option<&f64>| self.scale.place(tick.copied().unwrap_or(1.0));
        let (first, last) = (place(self.ticks.first()), place(self.ticks.last()));
        match first < last {
            true => (first, last),
            false => (first - 1.0, first + 1.0),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "a place in the picture")]
    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let (first, last) = self.ends();
        let share = (self.scale.place(*value) - first) / (last - first);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        let (first, last) = (self.ticks.first(), self.ticks.last());
        first.copied().unwrap_or(0.0)..last.copied().unwrap_or(1.0)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        short(*value)
    }
}

/// Rounds up to 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0].into_iter().map(|n| n * decade);
    steps
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(10.0 * decade)
}

/// Values along a size, with a name for the legend.
pub struct Line {
    pub name: String,
    /// Size and value, ordered by size.
    pub points: Vec<(f64, f64)>,
}

/// Labels and axes around the lines.
pub struct Frame<'a> {
    pub title: &'a str,
    /// Label of the horizontal axis: the size and its unit.
    pub along: &'a str,
    /// Label of the vertical axis: the value and its unit.
    pub value: &'a str,
    /// Scale of the values. Sizes are always on a logarithmic scale, because they are
    /// chosen that way.
    pub scale: Scale,
    /// Values that the axis covers in any case, so that small differences look small.
    pub covers: &'a [f64],
}

/// Draws lines. There must be at least one point, and none at or below zero.
pub fn lines(file: &Path, frame: &Frame<'_>, lines: &[Line]) -> io::Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut sizes: Vec<f64> = points().map(|(size, _)| *size).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let sizes = Axis {
        scale: Scale::Logarithmic,
        ticks: sizes,
    };
    let values = points().map(|(_, value)| *value);
    let values: Vec<f64> = values.chain(frame.covers.iter().copied()).collect();
    let values = Axis {
        scale: frame.scale,
        ticks: frame.scale.ticks(&values),
    };

    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(refused)?;
    let (head, body) = root.split_vertically(HEAD);
    title(&head, frame.title)?;
    legend(&head, lines)?;

    let mut chart = ChartBuilder::on(&body)
        .margin_right(40)
        .margin_bottom(8)
        .margin_left(8)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(sizes, values)
        .map_err(refused)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style((FONT, 13).with_color(INK))
        .axis_desc_style((FONT, 14).with_color(INK))
        .x_desc(frame.along)
        .y_desc(frame.value)
        .draw()
        .map_err(refused)?;

    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path = PathElement::new(line.points.clone(), colour.stroke_width(2));
        chart.draw_series([path]).map_err(refused)?;
        let points = line.points.iter();
        let dots = points.map(|point| Circle::new(*point, 4, colour.filled()));
        chart.draw_series(dots).map_err(refused)?;
    }
    root.present().map_err(refused)
}

pub struct Bar {
    /// Label on the left.
    pub name: String,
    pub value: f64,
    /// Label on the right: the value and its unit.
    pub said: String,
    /// Bars of one kind have the same colour.
    pub kind: usize,
}

/// Draws bars below each other, scaled so that the longest fills the width.
pub fn bars(file: &Path, heading: &str, bars: &[Bar]) -> io::Result<()> {
    let count = i32::try_from(bars.len()).map_err(io::Error::other)?;
    let height = u32::try_from(HEAD / 2 + 12 + count * BAR).map_err(io::Error::other)?;
    let root = SVGBackend::new(file, (SIZE.0, height)).into_drawing_area();
    root.fill(&WHITE).map_err(refused)?;
    title(&root, heading)?;
    let longest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let room = f64::from(SIZE.0) - f64::from(NAMES + VALUES);
    for (bar, top) in bars
        .iter()
        .zip((HEAD / 2 + 6..).step_by(BAR.unsigned_abs() as usize))
    {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than the picture is wide"
        )]
        let end = NAMES + (bar.value / longest * room).max(1.0) as i32;
        let colour = COLOURS.get(bar.kind % COLOURS.len()).unwrap_or(&INK);
        let rectangle = Rectangle::new([(NAMES, top), (end, top + BAR - 8)], colour.filled());
        root.draw(&rectangle).map_err(refused)?;
        let middle = top + (BAR - 8) / 2;
        let name = text(14, HPos::Right);
        let said = text(14, HPos::Left);
        let name = Text::new(bar.name.clone(), (NAMES - 10, middle), name);
        let said = Text::new(bar.said.clone(), (end + 8, middle), said);
        root.draw(&name).map_err(refused)?;
        root.draw(&said).map_err(refused)?;
    }
    root.present().map_err(refused)
}

fn title(area: &Area<'_>, said: &str) -> io::Result<()> {
    let style = text(18, HPos::Left);
    area.draw(&Text::new(said.to_owned(), (14, 20), style))
        .map_err(refused)
}

/// Text of this size, vertically centred on its position.
fn text(size: u32, side: HPos) -> TextStyle<'static> {
    let style = TextStyle::from((FONT, size)).color(&INK);
    style.pos(Pos::new(side, VPos::Center))
}

fn legend(area: &Area<'_>, lines: &[Line]) -> io::Result<()> {
    let mut left = 16;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let stroke = PathElement::new([(left, 51), (left + 22, 51)], colour.stroke_width(2));
        area.draw(&stroke).map_err(refused)?;
        let dot = Circle::new((left + 11, 51), 4, colour.filled());
        area.draw(&dot).map_err(refused)?;
        let style = text(13, HPos::Left);
        let name = Text::new(line.name.clone(), (left + 28, 51), style);
        area.draw(&name).map_err(refused)?;
        let letters = u32::try_from(line.name.chars().count()).map_err(io::Error::other)?;
        #[expect(clippy::cast_possible_truncation, reason = "a few hundred pixels")]
        let width = (f64::from(letters) * LETTER) as i32;
        left += 28 + width + 18;
    }
    Ok(())
}

/// Abbreviates large numbers: 5 million is `5 M`.
fn short(value: f64) -> String {
    // Ticks are products whose last digits may be inexact.
    let value = (value * 1e6).round() / 1e6;
    match value.abs() {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => table::whole(value),
        _ => value.to_string(),
    }
}

fn refused(error: impl Display) -> io::Error {
    io::Error::other(format!("can't draw: {error}"))
}
