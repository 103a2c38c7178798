// Pictures whose every pixel tells where it comes from. A frame of the feed has next to no blue; what must never be
// seen in its place, the page behind it and the placeholder, is blue all over; black is dark. Fading from frame to
// frame mixes colours in a straight line, so no mixture of frames can be taken for either.

import { PNG } from 'pngjs';

/** The page's own background, and what the page puts into the placeholder. */
export const PAGE = '#ff00ff';
export const PLACEHOLDER = '#0000ff';

const COLOURS = [[230, 20, 20], [240, 220, 20], [20, 220, 20], [250, 140, 20], [160, 230, 20], [220, 60, 30]];

/** Whether a pixel is of a frame, or of a mixture of frames. */
export const ofAFrame = (red, green, blue) => blue <= 60 && red + green >= 180;

/** Whether a pixel is the placeholder's. */
export const ofThePlaceholder = (red, green, blue) => blue >= 200 && red <= 60 && green <= 60;

/** Whether a pixel is the page's, or black. */
export const ofNothing = (red, green, blue) => (red >= 220 && blue >= 220) || red + green + blue <= 60;

/** A PNG of `side` by `side` pixels, each drawn by `paint(x, y)` as `[red, green, blue, alpha]`. */
function draw(side, paint) {
  const png = new PNG({ width: side, height: side });
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1) png.data.set(paint(x, y), (y * side + x) * 4);
  }
  return PNG.sync.write(png, { deflateLevel: 1 });
}

/** Frames of every colour: patterned, so that their bytes are many and half of them are half a picture. */
export const GOOD = COLOURS.map((one, index) => {
  const other = COLOURS[(index + 1) % COLOURS.length];
  return draw(512, (x, y) => [...((x * y) % 7 < 5 ? one : other), 255]);
});

export const BLACK = draw(64, () => [0, 0, 0, 255]);
export const TRANSPARENT = draw(64, () => [240, 220, 20, 0]);

/** The pixels of a PNG inside a box. */
export function pixels(bytes, { x, y, width, height }) {
  const png = PNG.sync.read(bytes);
  const found = [];
  for (let row = y; row < y + height; row += 1) {
    for (let column = x; column < x + width; column += 1) {
      const at = (row * png.width + column) * 4;
      found.push([png.data[at], png.data[at + 1], png.data[at + 2]]);
    }
  }
  return found;
}
