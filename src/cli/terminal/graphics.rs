//! Images on a terminal: kitty's protocol, iTerm2's, sixel, or half blocks in colour.

use crate::cli::terminal::screen::{self, Drawing};
use crate::settings::Graphics;
use ::image::imageops::{ColorMap, FilterType, dither, index_colors, resize};
use ::image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// Rows of text that one image may cover.
const MOST_ROWS: u16 = 20;
/// Pixels of a character where the terminal does not say: smaller than usual, so that an image never needs more room than it has.
const USUAL_CELL: (u32, u32) = (8, 16);

impl Graphics {
    /// What this terminal takes, by what it says of itself.
    pub(in crate::cli) fn detect() -> Self {
        let set = |name: &str| std::env::var(name).unwrap_or_default();
        let (term, program) = (set("TERM"), set("TERM_PROGRAM"));
        // A multiplexer hands on only what it understands itself, whatever terminal it was started from.
        let multiplexed = !set("TMUX").is_empty() || !set("STY").is_empty() || term.starts_with("screen") || term.starts_with("tmux");
        if !multiplexed {
            if term == "xterm-kitty" || term == "xterm-ghostty" || program == "ghostty" || !set("KITTY_WINDOW_ID").is_empty() {
                return Graphics::Kitty;
            }
            if ["iTerm.app", "WezTerm", "mintty"].contains(&program.as_str()) || set("LC_TERMINAL") == "iTerm2" {
                return Graphics::Iterm2;
            }
        }
        if takes_sixel() {
            return Graphics::Sixel;
        }
        let many = ["truecolor", "24bit"].contains(&set("COLORTERM").as_str()) || term.ends_with("-direct");
        if many { Graphics::Blocks } else { Graphics::Blocks256 }
    }

    /// An image for the terminal as it is now; `number` tells it from the others that are on the terminal.
    pub(in crate::cli) fn draw(self, image: &RgbImage, number: u32) -> Drawing {
        let size = screen::size();
        self.draw_within(image, number, (MOST_ROWS.min(size.0.saturating_sub(4)).max(1), size.1.saturating_sub(1).max(1)), cell())
    }

    fn draw_within(self, image: &RgbImage, number: u32, (most_rows, most_columns): (u16, u16), cell: (u32, u32)) -> Drawing {
        // A half block is a pixel, and as wide as it is high.
        let cell = if matches!(self, Graphics::Blocks | Graphics::Blocks256) { (1, 2) } else { cell };
        let (width, height) = fit(image.dimensions(), (u32::from(most_columns) * cell.0, u32::from(most_rows) * cell.1));
        let (columns, rows) = (width.div_ceil(cell.0), height.div_ceil(cell.1));
        let scaled = |width, height| resize(image, width, height, FilterType::CatmullRom);
        let mut remove = String::new();
        let text = match self {
            Graphics::Kitty => {
                remove = format!("\x1b_Ga=d,d=I,i={number},q=2\x1b\\");
                kitty(&png(&scaled(width, height)), number, (columns, rows))
            }
            Graphics::Iterm2 => {
                let png = png(&scaled(width, height));
                let (bytes, encoded) = (png.len(), STANDARD.encode(png));
                format!(
                    "\x1b]1337;File=inline=1;size={bytes};width={columns};height={rows};preserveAspectRatio=0;doNotMoveCursor=1:{encoded}\x07"
                )
            }
            // Sixel generates six lines of pixels at once: a part of six would reach into the row below.
            Graphics::Sixel => sixel(scaled(width, (height / 6 * 6).max(6))),
            Graphics::Blocks => blocks(&scaled(width, height), |Rgb([r, g, b])| format!("2;{r};{g};{b}")),
            Graphics::Blocks256 => {
                let mut scaled = scaled(width, height);
                dithered(&mut scaled);
                blocks(&scaled, |colour| format!("5;{}", 16 + Cube.index_of(&colour)))
            }
        };
        Drawing { text, rows: rows as usize, remove }
    }
}

/// The largest size of the shape of `size` that fits into `room`.
fn fit((width, height): (u32, u32), room: (u32, u32)) -> (u32, u32) {
    let (width, height) = (width.max(1), height.max(1));
    let scale = (f64::from(room.0) / f64::from(width)).min(f64::from(room.1) / f64::from(height));
    let scaled = |pixels: u32, most: u32| ((f64::from(pixels) * scale).round() as u32).clamp(1, most.max(1));
    (scaled(width, room.0), scaled(height, room.1))
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
    // Only memory can fail here, and an empty image is nothing to look at.
    let _ = encoder.write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8);
    bytes
}

/// # Source
/// <https://sw.kovidgoyal.net/kitty/graphics-protocol/>
fn kitty(png: &[u8], number: u32, (columns, rows): (u32, u32)) -> String {
    const LONGEST: usize = 4096;
    let encoded = STANDARD.encode(png);
    let mut text = String::with_capacity(encoded.len() + 200);
    let mut chunks = encoded.as_bytes().chunks(LONGEST).peekable();
    let mut first = true;
    while let Some(chunk) = chunks.next() {
        let more = u8::from(chunks.peek().is_some());
        let control = if first { format!("a=T,f=100,i={number},q=2,C=1,c={columns},r={rows},") } else { String::new() };
        let _ = write!(text, "\x1b_G{control}m={more};{}\x1b\\", String::from_utf8_lossy(chunk));
        first = false;
    }
    text
}

/// Two pixels a character: the upper one is the foreground, the lower one the background.
fn blocks(image: &RgbImage, colour: impl Fn(Rgb<u8>) -> String) -> String {
    let mut text = String::new();
    for top in (0..image.height()).step_by(2) {
        let mut last = None;
        for x in 0..image.width() {
            let pair = (*image.get_pixel(x, top), image.get_pixel_checked(x, top + 1).copied());
            if last != Some(pair) {
                let _ = write!(text, "\x1b[38;{}", colour(pair.0));
                let _ = match pair.1 {
                    Some(below) => write!(text, ";48;{}m", colour(below)),
                    None => write!(text, ";49m"),
                };
                last = Some(pair);
            }
            text.push('▀');
        }
        text.push_str("\x1b[0m");
        if top + 2 < image.height() {
            text.push_str("\r\n");
        }
    }
    text
}

/// Six levels of each colour: the colours 16 to 231 of a terminal, and few enough for sixel's 256.
struct Cube;

impl Cube {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];

    fn nearest(value: u8) -> usize {
        (0..6).min_by_key(|i| Self::LEVELS[*i].abs_diff(value)).unwrap_or(0)
    }

    fn colour(index: usize) -> [u8; 3] {
        [Self::LEVELS[index / 36 % 6], Self::LEVELS[index / 6 % 6], Self::LEVELS[index % 6]]
    }
}

impl ColorMap for Cube {
    type Color = Rgb<u8>;

    fn index_of(&self, Rgb([r, g, b]): &Rgb<u8>) -> usize {
        36 * Self::nearest(*r) + 6 * Self::nearest(*g) + Self::nearest(*b)
    }

    fn map_color(&self, colour: &mut Rgb<u8>) {
        *colour = Rgb(Self::colour(self.index_of(colour)));
    }
}

/// In the cube's colours. What is one pixel wide has no neighbour to spread an error to, and `dither` would reach for it.
fn dithered(image: &mut RgbImage) {
    if image.width() > 1 {
        dither(image, &Cube);
    }
}

/// # Source
/// DEC STD 070, chapter 9; VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.
fn sixel(mut image: RgbImage) -> String {
    dithered(&mut image);
    let indices = index_colors(&image, &Cube);
    let (width, height) = image.dimensions();
    let mut text = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    let mut used: Vec<u8> = indices.as_raw().clone();
    used.sort_unstable();
    used.dedup();
    for index in &used {
        // Colours are in percent.
        let [r, g, b] = Cube::colour(usize::from(*index)).map(|value| (u32::from(value) * 100 + 127) / 255);
        let _ = write!(text, "#{index};2;{r};{g};{b}");
    }
    for top in (0..height).step_by(6) {
        let band: Vec<u8> =
            (top..height.min(top + 6)).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| indices.get_pixel(x, y).0[0]).collect();
        for index in used.iter().filter(|index| band.contains(index)) {
            let _ = write!(text, "#{index}");
            let column = |x: usize| {
                let bits = band.chunks(width as usize).enumerate().filter(|(_, row)| row[x] == *index);
                bits.fold(0u8, |bits, (y, _)| bits | 1 << y)
            };
            let mut x = 0;
            while x < width as usize {
                let bits = column(x);
                let run = (x..width as usize).take_while(|x| column(*x) == bits).count();
                let _ = write!(text, "!{run}{}", char::from(63 + bits));
                x += run;
            }
            text.push('$');
        }
        text.push('-');
    }
    text.push_str("\x1b\\");
    text
}

/// Pixels of a character.
#[cfg(unix)]
fn cell() -> (u32, u32) {
    let Ok(size) = rustix::termios::tcgetwinsize(std::io::stderr()) else { return USUAL_CELL };
    let each = |pixels: u16, count: u16| pixels.checked_div(count).filter(|pixels| *pixels > 1).map(u32::from);
    each(size.ws_xpixel, size.ws_col).zip(each(size.ws_ypixel, size.ws_row)).unwrap_or(USUAL_CELL)
}

#[cfg(not(unix))]
fn cell() -> (u32, u32) {
    USUAL_CELL
}

/// Asks the terminal which of DEC's features it has; 4 is sixel.
#[cfg(unix)]
fn takes_sixel() -> bool {
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcgetpgrp, tcsetattr};
    use std::io::{Read, Write};
    let Ok(mut terminal) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty") else { return false };
    // In the background a terminal stops whoever changes it.
    if tcgetpgrp(&terminal).ok() != Some(rustix::process::getpgrp()) {
        return false;
    }
    let Ok(before) = tcgetattr(&terminal) else { return false };
    let mut raw = before.clone();
    raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    raw.special_codes[SpecialCodeIndex::VMIN] = 0;
    // Tenths of a second that the terminal has for each byte.
    raw.special_codes[SpecialCodeIndex::VTIME] = 3;
    if tcsetattr(&terminal, OptionalActions::Now, &raw).is_err() {
        return false;
    }
    let mut said = Vec::new();
    if terminal.write_all(b"\x1b[c").is_ok() {
        let mut byte = [0];
        while said.len() < 64 && said.last() != Some(&b'c') && terminal.read(&mut byte).is_ok_and(|n| n == 1) {
            said.push(byte[0]);
        }
    }
    let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
    has_sixel(&said)
}

#[cfg(not(unix))]
fn takes_sixel() -> bool {
    false
}

/// Reads `ESC [ ? 62 ; 4 ; 22 c`.
#[cfg(any(unix, test))]
fn has_sixel(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    let Some((_, features)) = said.split_once("\x1b[?") else { return false };
    features.strip_suffix('c').is_some_and(|features| features.split(';').skip(1).any(|feature| feature == "4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| if (x < width / 2) == (y < height / 2) { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
    }

    /// The pixels of a sixel text, as colours of its own palette.
    fn read_sixel(text: &str) -> Vec<Vec<[u8; 3]>> {
        let body = text.strip_prefix("\x1bP0;1;0q").unwrap().strip_suffix("\x1b\\").unwrap();
        let mut palette = std::collections::HashMap::new();
        let (mut rows, mut colour, mut x, mut top) = (Vec::<Vec<[u8; 3]>>::new(), [0; 3], 0, 0);
        let mut rest = body;
        while let Some(c) = rest.chars().next() {
            rest = &rest[1..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(rest.len());
            let mut numbers = || {
                let (taken, after) = rest.split_at(end);
                rest = after;
                taken.split(';').map(|n| n.parse::<usize>().unwrap()).collect::<Vec<_>>()
            };
            let mut generate = |count: usize, letter: char| {
                for _ in 0..count {
                    for y in (0..6).filter(|y| (letter as u8 - 63) >> y & 1 == 1) {
                        while rows.len() <= top + y {
                            rows.push(Vec::new());
                        }
                        let row = &mut rows[top + y];
                        row.resize(row.len().max(x + 1), [9; 3]);
                        row[x] = colour;
                    }
                    x += 1;
                }
            };
            match c {
                '"' => drop(numbers()),
                '#' => match numbers().as_slice() {
                    [index] => colour = palette[index],
                    [index, 2, r, g, b] => drop(palette.insert(*index, [*r as u8, *g as u8, *b as u8])),
                    other => panic!("{other:?}"),
                },
                '!' => {
                    let count = numbers()[0];
                    let letter = rest.chars().next().unwrap();
                    rest = &rest[1..];
                    generate(count, letter);
                }
                '$' => x = 0,
                '-' => (x, top) = (0, top + 6),
                letter => generate(1, letter),
            }
        }
        rows
    }

    #[test]
    fn images_keep_their_shape_and_fit() {
        assert_eq!(fit((64, 64), (80, 40)), (40, 40));
        assert_eq!(fit((128, 64), (80, 40)), (80, 40));
        assert_eq!(fit((64, 640), (80, 40)), (4, 40));
        assert_eq!(fit((0, 5000), (1, 1)), (1, 1));
        for (_, graphics) in Graphics::NAMES {
            let drawing = graphics.draw_within(&checks(64, 32), 7, (10, 80), (9, 18));
            assert_eq!(drawing.rows, 10, "{graphics:?}");
            let narrow = graphics.draw_within(&checks(64, 32), 7, (10, 20), (9, 18));
            assert_eq!(narrow.rows, 5, "{graphics:?}");
        }
    }

    #[test]
    fn an_image_of_any_size_fits_a_terminal_of_any_size() {
        for (_, graphics) in Graphics::NAMES {
            for image in [checks(1, 1), checks(1, 64), checks(64, 1), checks(8, 1024), checks(2, 3)] {
                for room in [(1, 1), (1, 2), (2, 1), (20, 79), (20, 1)] {
                    let drawing = graphics.draw_within(&image, 7, room, (9, 18));
                    assert!(drawing.rows <= usize::from(room.0) && !drawing.text.is_empty(), "{graphics:?} {room:?}");
                }
            }
        }
    }

    #[test]
    fn half_blocks_hold_two_pixels_each() {
        let drawing = Graphics::Blocks.draw_within(&checks(4, 4), 1, (2, 80), (9, 18));
        let (red, blue) = ("2;255;0;0", "2;0;0;255");
        let line = |left: &str, right: &str| format!("\x1b[38;{left};48;{left}m▀▀\x1b[38;{right};48;{right}m▀▀\x1b[0m");
        assert_eq!(drawing.text, format!("{}\r\n{}", line(red, blue), line(blue, red)));
        let odd = blocks(&checks(2, 3), |_| "5;1".into());
        assert!(odd.ends_with("\x1b[38;5;1;49m▀▀\x1b[0m") || odd.ends_with(";49m▀\x1b[0m"), "{odd:?}");
        let few = Graphics::Blocks256.draw_within(&checks(4, 4), 1, (2, 80), (9, 18));
        assert_eq!(few.text, drawing.text.replace(red, "5;196").replace(blue, "5;21"));
    }

    #[test]
    fn sixels_are_the_pixels() {
        let drawing = Graphics::Sixel.draw_within(&checks(24, 12), 1, (1, 80), (6, 12));
        let rows = read_sixel(&drawing.text);
        let wanted = checks(24, 12);
        assert_eq!((rows.len(), rows[0].len()), (12, 24));
        for (y, row) in rows.iter().enumerate() {
            for (x, colour) in row.iter().enumerate() {
                assert_eq!(*colour, wanted.get_pixel(x as u32, y as u32).0.map(|v| (u32::from(v) * 100 / 255) as u8), "{x} {y}");
            }
        }
    }

    #[test]
    fn the_protocols_carry_the_image_as_png() {
        let image = checks(90, 36);
        for (graphics, from, to) in [(Graphics::Iterm2, ":", "\x07"), (Graphics::Kitty, ";", "\x1b\\")] {
            let drawing = graphics.draw_within(&image, 7, (2, 10), (9, 18));
            let (_, after) = drawing.text.split_once(from).unwrap();
            let after = if graphics == Graphics::Iterm2 { drawing.text.rsplit_once(from).unwrap().1 } else { after };
            let bytes = STANDARD.decode(after.split_once(to).unwrap().0).unwrap();
            assert_eq!(::image::load_from_memory(&bytes).unwrap().to_rgb8(), image);
        }
        let long = kitty(&vec![0; 10_000], 3, (4, 2));
        assert_eq!(long.matches("\x1b_G").count(), 4);
        assert!(long.starts_with("\x1b_Ga=T,f=100,i=3,q=2,C=1,c=4,r=2,m=1;") && long.contains("\x1b_Gm=0;"));
    }

    #[test]
    fn a_terminal_says_whether_it_takes_sixel() {
        for (said, takes) in
            [("\x1b[?62;4;22c", true), ("\x1b[?4c", false), ("\x1b[?64;1;2;6;9;15c", false), ("\x1b[?62;14;24c", false), ("", false)]
        {
            assert_eq!(has_sixel(said.as_bytes()), takes, "{said:?}");
        }
    }
}
