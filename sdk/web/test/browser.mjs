// A real browser: the page with the component in it, what it reports, and every frame that the compositor paints.

import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from 'playwright-core';

import { BOX, KEY } from './feed.mjs';
import { ofAFrame, ofNothing, ofThePlaceholder, pixels } from './pictures.mjs';

const USUAL = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'];

export function launch() {
  const executablePath = process.env.CHROMIUM ?? USUAL.find((path) => existsSync(path));
  if (!executablePath) throw new Error('no Chromium: install it, or set CHROMIUM to its path');
  return chromium.launch({ executablePath, args: ['--disable-gpu'] });
}

/** Waits until `condition` gives something true, and returns it. */
export async function eventually(what, condition, ms = 10_000) {
  const until = performance.now() + ms;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (performance.now() > until) throw new Error(`not within ${ms} ms: ${what}`);
    await sleep(20);
  }
}

/** Runs in the page before all else: counts what a component might leave behind, and notes what it reports. */
function instrument() {
  const left = { timers: new Set(), urls: new Set(), mostUrls: 0, fetches: 0 };
  const told = { frame: [], framedropped: [], feederror: [] };
  Object.assign(window, { left, told });
  const { setTimeout: set, clearTimeout: clear, fetch: get } = window;
  window.setTimeout = (work, ms) => {
    const timer = set(() => { left.timers.delete(timer); work(); }, ms);
    left.timers.add(timer);
    return timer;
  };
  window.clearTimeout = (timer) => { left.timers.delete(timer); clear(timer); };
  window.fetch = (...request) => {
    left.fetches += 1;
    return get(...request).finally(() => { left.fetches -= 1; });
  };
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => {
    const url = createObjectURL(blob);
    left.urls.add(url);
    left.mostUrls = Math.max(left.mostUrls, left.urls.size);
    return url;
  };
  URL.revokeObjectURL = (url) => { left.urls.delete(url); revokeObjectURL(url); };
  for (const type of Object.keys(told)) {
    document.addEventListener(type, (event) => told[type].push(event.detail), true);
  }
}

export class Viewer {
  /** Opens the page. The component has its key only after `begin`. */
  static async open(browser, url, options = {}) {
    const context = await browser.newContext({ viewport: { width: 160, height: 110 }, ...options });
    const viewer = new Viewer();
    viewer.page = await context.newPage();
    viewer.problems = [];
    viewer.page.on('pageerror', (error) => viewer.problems.push(error.message));
    await viewer.page.addInitScript(instrument);
    await viewer.page.goto(url);
    await viewer.page.evaluate(() => customElements.whenDefined('tollgate-frames').then(() => true));
    viewer.element = viewer.page.locator('tollgate-frames');
    viewer.cdp = await context.newCDPSession(viewer.page);
    return viewer;
  }

  /** Gives the component its key, and sets its other properties. */
  begin(properties = {}) {
    return this.element.evaluate((element, values) => { Object.assign(element, values); }, { key: KEY, ...properties });
  }

  /** What it has reported of a type so far. */
  told(type) {
    return this.page.evaluate((name) => window.told[name], type);
  }

  async frames() {
    return (await this.told('frame')).length;
  }

  /** Waits until there have been so many frames in all. */
  async reach(frames, ms = 20_000) {
    await eventually(`${frames} frames`, async () => await this.frames() >= frames, ms);
  }

  /** Waits for so many more frames. */
  async more(frames, ms) {
    await this.reach(await this.frames() + frames, ms);
  }

  /** What the component has under way in the page. */
  left() {
    return this.page.evaluate(() => {
      const { timers, urls, mostUrls, fetches } = window.left;
      return { timers: timers.size, urls: urls.size, mostUrls, fetches };
    });
  }

  /** How many listeners the document has for a type of event. */
  async listeners(type) {
    const { result } = await this.cdp.send('Runtime.evaluate', { expression: 'document' });
    const { listeners } = await this.cdp.send('DOMDebugger.getEventListeners', { objectId: result.objectId });
    return listeners.filter((listener) => listener.type === type).length;
  }

  /** How many pictures, and bytes of script's memory, there are after the garbage was collected. */
  async memory() {
    await this.cdp.send('HeapProfiler.collectGarbage');
    const { result } = await this.cdp.send('Runtime.evaluate', { expression: 'HTMLImageElement.prototype' });
    const { objects } = await this.cdp.send('Runtime.queryObjects', { prototypeObjectId: result.objectId });
    const { result: count } = await this.cdp.send('Runtime.callFunctionOn', {
      objectId: objects.objectId, functionDeclaration: 'function () { return this.length }', returnByValue: true,
    });
    // Else it would hold on to what it has found.
    await this.cdp.send('Runtime.releaseObject', { objectId: objects.objectId });
    const { usedSize } = await this.cdp.send('Runtime.getHeapUsage');
    return { pictures: count.value, bytes: usedSize };
  }

  /** Makes the page hidden, or visible again: a headless page has no window that could be covered. */
  hide(hidden) {
    return this.page.evaluate((now) => {
      Object.defineProperty(document, 'hidden', { configurable: true, get: () => now });
      document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
  }

  /** What is to be seen in the component's box at this moment. */
  async look() {
    return judge(await this.page.screenshot({ type: 'png' }));
  }

  async watch() {
    return Watch.begin(this.cdp);
  }

  async close() {
    await this.page.context().close();
  }
}

/** What a painted frame shows in the component's box: how many of its pixels are of what. */
function judge(bytes) {
  const seen = { all: 0, frame: 0, placeholder: 0, nothing: 0 };
  for (const pixel of pixels(bytes, BOX)) {
    seen.all += 1;
    if (ofAFrame(...pixel)) seen.frame += 1;
    if (ofThePlaceholder(...pixel)) seen.placeholder += 1;
    if (ofNothing(...pixel)) seen.nothing += 1;
  }
  return seen;
}

/** Every frame that the compositor paints while it watches (a screencast sends one for each that differs). */
class Watch {
  painted = 0;
  /** Frames on which something is to be seen that is neither picture nor, before the first picture, placeholder. */
  blank = [];
  /** Whether a picture has filled the box; from then on nothing else may. */
  live = false;

  static async begin(cdp) {
    const watch = new Watch();
    watch.cdp = cdp;
    watch.began = performance.now();
    watch.listener = ({ data, sessionId }) => {
      // Before it is looked at, so that the next one is not held up.
      cdp.send('Page.screencastFrameAck', { sessionId }).catch(() => {});
      watch.#see(judge(Buffer.from(data, 'base64')));
    };
    cdp.on('Page.screencastFrame', watch.listener);
    await cdp.send('Page.startScreencast', { format: 'png', everyNthFrame: 1 });
    return watch;
  }

  #see(seen) {
    this.painted += 1;
    if (seen.frame === seen.all) this.live = true;
    if (this.live ? seen.frame < seen.all : seen.nothing > 0) this.blank.push({ number: this.painted, ...seen });
  }

  async end() {
    await this.cdp.send('Page.stopScreencast');
    this.cdp.off('Page.screencastFrame', this.listener);
    this.seconds = (performance.now() - this.began) / 1_000;
    return this;
  }
}
